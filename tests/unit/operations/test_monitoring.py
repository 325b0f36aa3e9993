"""The rules for Prometheus, by its own tool; and how what an expression asks for is found."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promql import Asked, asked

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "shared" / "operations"
PROMTOOL = shutil.which("promtool")
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))["panels"]
DRAWN = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool, of Prometheus, is not installed")


def promtool(*arguments: object, stdin: str | None = None) -> None:
    command = [str(PROMTOOL), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_rules_and_configuration() -> None:
    promtool("check", "rules", MONITORING / "alerts.yaml")
    promtool("check", "config", "--syntax-only", MONITORING / "prometheus.yaml")


@needs_promtool
def test_each_fault_raises_its_alert_and_a_system_that_is_well_none() -> None:
    promtool("test", "rules", ROOT / "tests" / "unit" / "operations" / "alerts.yaml")


@needs_promtool
def test_prometheus_can_read_what_the_dashboard_draws(tmp_path: Path) -> None:
    rules = [
        {"record": f"drawn:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(DRAWN)
    ]
    file = tmp_path / "drawn.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", file)


def test_every_alert_says_how_bad_it_is_and_is_tried() -> None:
    tried = yaml.safe_load((ROOT / "tests" / "unit" / "operations" / "alerts.yaml").read_text(encoding="utf-8"))[
        "tests"
    ]
    fired = {rule["alertname"] for test in tried for rule in test["alert_rule_test"] if rule["exp_alerts"]}
    silent = {rule["alertname"] for test in tried for rule in test["alert_rule_test"] if not rule["exp_alerts"]}
    names = [rule["alert"] for rule in RULES]
    assert (sorted(fired), sorted(silent)) == (sorted(names), sorted(names))
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboards_panels_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_scraped_jobs_are_those_that_rules_and_dashboard_name() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert {(name, one["names"][0], one["port"]) for name, one in jobs.items()} == {
        ("deribit-api", "api", 8000),
        ("deribit-worker", "worker", 9464),
    }
    assert {one["names"][0] for one in jobs.values()} <= set(services)
    matched = re.findall(r'job=~"([^"]*)"', " ".join([*DRAWN, *(rule["expr"] for rule in RULES)]))
    assert matched
    assert all(re.fullmatch(pattern, job) for pattern in matched for job in jobs)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up == 0", Asked({"up": set()}, set())),
        ('rate(a_total{code!="ok", b=~"c{d}"}[5m])', Asked({"a_total": {"code", "b"}}, set())),
        ("sum by (le, x) (rate(a_bucket[$__rate_interval])) > 0", Asked({"a_bucket": set()}, {"le", "x"})),
        ("sum(a) by (x) / on (y) group_left () b", Asked({"a": set(), "b": set()}, {"x", "y"})),
        (
            "a offset 5m or max without (k) (b) unless time() - c > 1e3",
            Asked({"a": set(), "b": set(), "c": set()}, {"k"}),
        ),
        ("histogram_quantile(0.99, a) and absent(b{})", Asked({"a": set(), "b": set()}, set())),
    ],
)
def test_what_an_expression_asks_for_is_found(expression: str, expected: Asked) -> None:
    assert asked(expression) == expected
