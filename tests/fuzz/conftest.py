"""A closing table: how many bad inputs of each kind were tried, and what was found."""

import os

import pytest

IS_LONG = os.environ.get("FAULTS") == "long"
"`make faults`: a minute of each; `make test` runs the short form of the same tests."

SEED = int(os.environ.get("FUZZ_SEED", "1"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == "bad inputs"]
    if rows:
        terminalreporter.section(f"bad inputs, seed {SEED}")
        for kind, tried, answered, slowest, findings in [("kind", "tried", "answered", "slowest", "findings"), *rows]:
            terminalreporter.line(f"{kind:<40}{tried:>10}{answered:>10}{slowest:>12}{findings:>10}")
    for report in reports:
        for name, value in report.user_properties:
            if name == "bad inputs, process":
                terminalreporter.line(str(value))
