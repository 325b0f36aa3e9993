"""The figures as tables: for the terminal, and as Markdown for RESULTS.md."""

import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.bench.machine import Cores, describe_cpu
from tests.bench.peers import HERE, PROJECT, PYTHON, ROOT, Contestant, node_folder
from tests.bench.questions import QUESTIONS
from tests.bench.rounds import Result, Samples, paired_ratio, summarize

Table = list[list[str]]

RESULTS = HERE / "RESULTS.md"
FULL_RUN = "a full run"
JSON_NAMES = ("project", "unlike", "limit1", "limit2", "postgraphile", "mercurius", "strawberry", "brief")


METHOD = """
Every contestant answers the same queries over the same 2 x 500,000 rows in the same PostgreSQL, with ten connections,
over 32 HTTP keep-alive connections; tickers and the 512 periods rotate, but "the same again" is two requests. The
first answers of each are compared with the table. Then come rounds: in each round every contestant answers every
query, one contestant at a time, in an order that rotates from round to round. Requests per second and p99 are medians
over the rounds; a ratio is the median of the rounds' own ratios. CPU time is what the server's processes and all of
PostgreSQL used in all rounds, divided by the answered requests: it depends less on other programs on the machine.

- Server and load generator run on different cores. With only two cores PostgreSQL runs on the one that is free, as it
  would beside any of these servers. A "server busy" far below 100 % means that PostgreSQL, or another program, was the
  bottleneck.
- This project keeps the answers of recent requests until the data change, and each request reads the version of the
  data, in single flight. Its row "the same again" shows that, while nothing is stored. In its row "no two requests
  alike" no request is known from before, so that each one runs its statement.
- The contestants take the candles of a day from the project's table of minutes, and whether one is complete from a bit
  of it; this project also compares each with the schedule. No other contestant has `tickers`, `coverage` or GraphQL by
  GET.
- Two processes are two ports, each with half of the connections, as behind a load balancer. On two cores the second
  process shares its core with the load generator, and both with PostgreSQL, so the gain of a second core does not show.
- PostgreSQL runs with fsync off. The candle triggers are off while the rows are loaded; they are on when storing and
  growth are measured. Growth is measured with the project's own functions and their prepared statements; the time is
  that of pg_stat_statements: execution, without planning and the network.
- Memory is the API's resident set over a mixture of small queries. A fetch's start is the one in its record. Slots
  count once a worker has filled the (short) history before its first slot.
- PostGraphile's fields are SQL functions, Mercurius has named prepared statements, both run in production mode. What
  Mercurius answers ends at milliseconds, because node-postgres reads timestamps as JavaScript dates.
- The brief's stack and the two limits answer the four fields in one request made for that.
- What each query field costs the API is in [FIELDS.md](FIELDS.md).
- A hundred million rows, in one table and in partitions, are in [ROWS.md](ROWS.md).
- A million prices as a file, and a thousand instants, are in [EXPORTS.md](EXPORTS.md).
"""


def summaries(samples: Samples) -> dict[tuple[str, str], Result]:
    return {key: summarize(of_key) for key, of_key in samples.items()}


def question_tables(samples: Samples, contestants: Sequence[Contestant]) -> list[tuple[str, Table]]:
    results = summaries(samples)
    tables = []
    for question in QUESTIONS:
        head = ["", "req/s", "p99 ms", "CPU µs/request", "server", "PostgreSQL", "server busy"]
        rows = [head]
        for contestant in [one for one in contestants if one.answers(question)]:
            result = results[contestant.name, question.name]
            rows.append(
                [
                    contestant.label,
                    f"{result.rate:,.0f}",
                    f"{result.p99_ms:.1f}",
                    f"{result.cpu_us:,.0f}",
                    f"{result.server_us:,.0f}",
                    f"{result.postgres_us:,.0f}",
                    f"{result.server_busy:.0%}",
                ]
            )
        tables.append((question.label, rows))
    return tables


def ratio_table(samples: Samples, contestants: Sequence[Contestant], ours: Contestant = PROJECT) -> Table:
    """`ours` by each other: requests per second, then CPU time a request (below 1 is less)."""
    results = summaries(samples)
    rows = [[f"{ours.label} /", *(question.label for question in QUESTIONS)]]
    for contestant in contestants:
        if contestant is ours:
            continue
        cells = []
        for question in QUESTIONS:
            if not contestant.answers(question):
                cells.append("")
                continue
            one, other = (ours.name, question.name), (contestant.name, question.name)
            speed = paired_ratio(samples[one], samples[other])
            cells.append(f"{speed:.2f} · CPU {results[one].cpu_us / results[other].cpu_us:.2f}")
        rows.append([contestant.label, *cells])
    return rows


def json_line(samples: Samples) -> str:
    """Requests per second; null for a peer that could not be had."""
    results = summaries(samples)
    figures = {
        question.name: {
            name: round(results[name, question.name].rate) if (name, question.name) in results else None
            for name in JSON_NAMES
        }
        for question in QUESTIONS
    }
    return json.dumps(figures)


def as_text(table: Table) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    head, *rows = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions(contestants: Sequence[Contestant], postgres: str) -> str:
    ours = [f"{name} {version(name)}" for name in ("strawberry-graphql", "uvicorn", "uvloop", "asyncpg")]
    found = [f"Python {platform.python_version()}", *ours, postgres]
    if any(contestant.file.endswith(".py") for contestant in contestants):
        listed = _output([PYTHON, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])
        packages = {package["name"].lower(): package["version"] for package in json.loads(listed)}
        found += [f"{name} {packages[name]}" for name in ("fastapi", "sqlalchemy", "starlette", "orjson")]
    if any(contestant.file.endswith(".mjs") for contestant in contestants):
        found.append(f"Node {_output([node_folder() / 'bin' / 'node', '--version']).strip()}")
        for name in ("postgraphile", "mercurius", "pg"):
            package = json.loads((HERE / "node_modules" / name / "package.json").read_text())
            found.append(f"{name} {package['version']}")
    return ", ".join(found)


def commit() -> str:
    """Of the project measured; `+` where the tree holds more than that."""
    try:
        name = _output(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).strip()
        return name + ("+" if _output(["git", "-C", ROOT, "status", "--porcelain", "server", "shared"]) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def write_results(sections: Sequence[tuple[str, str]], mode: str, cores: Cores, software: str) -> bool:
    """Answers whether they were written: a quick run leaves the figures of a full one."""
    if mode != FULL_RUN and RESULTS.exists() and FULL_RUN.capitalize() in RESULTS.read_text(encoding="utf-8"):
        return False
    head = f"""# Benchmark

{mode.capitalize()} of `make bench` on {datetime.now(UTC):%Y-%m-%d}, commit {commit()}.

- Machine: {describe_cpu()}; {cores.description}
- Versions: {software}
"""
    sections = [*sections, ("How it is measured", METHOD.strip())]
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections)
    RESULTS.write_text(f"{head}\n{body}", encoding="utf-8")
    return True


def _output(command: list[str | Path]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
