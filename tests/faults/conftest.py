"""A stack per test, and a final table: the slots, with the reasons of missing ones, and the time to recover."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.faults.history import History
from tests.faults.stack import Stack, open_stack

IS_LONG = os.environ.get("FAULTS") == "long"
"`make faults`: longer outages and more rounds; `make test` runs the short form of the same tests."

Report = Callable[..., None]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Add a row: the fault, the history afterwards, the seconds to recover, and what clients saw."""

    def add(fault: str, history: History, seconds: float, clients: str = "") -> None:
        row = (fault, history.expected, history.observed, history.healed, history.missing, round(seconds, 1), clients)
        request.node.user_properties.append(("fault", row))  # xdist passes it to the main process

    return add


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """At one slot a second."""
    async with open_stack(tmp_path, interval=1) as stack:
        yield stack


@pytest.fixture
async def slow_stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """At one slot in six seconds, the finest grid that the exchange's chart can heal. Its trades can, too."""
    async with open_stack(tmp_path, interval=6, has_trades=True) as stack:
        yield stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if rows:
        terminalreporter.section("faults")
        heads = ("fault", "slots", "observed", "healed", "explained", "recovered", "clients")
        for fault, *counts, seconds, clients in [heads, *sorted(rows)]:
            unit = "  " if seconds == "recovered" else " s"
            line = f"{fault:<52}" + "".join(f"{count:>10}" for count in counts) + f"{seconds:>12}{unit}  {clients}"
            terminalreporter.line(line.rstrip())
