"""PostgreSQL's disk is full: a small file system, filled up by another file."""

import asyncio
import contextlib
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import Stack, open_stack
from tests.faults.traffic import LATEST

MEGABYTES = 160
FULL_SECONDS = 30 if IS_LONG else 3
"After the first price that was not stored."
ALMOST_EMPTY = "alter table prices set (fillfactor = 10)"
"Then every few prices need a new page, instead of one a minute."


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Where the stack's PostgreSQL keeps its files."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """To the last page."""
    for size in (1024 * 1024, 4096):
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # ENOSPC
            while file.write(bytes(size)):
                pass


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_log_full", [False, *([True] if IS_LONG else [])])
async def test_a_full_disk_loses_no_price(
    tmp_path: Path, small_disk: Path, report: Report, *, is_log_full: bool
) -> None:
    """With `is_log_full` the write-ahead log has no room either: PostgreSQL panics and does not restart."""
    async with open_stack(tmp_path, interval=1) as stack:
        worker, api = stack.start_worker(), await stack.start_api()
        await stack.wait_for_prices(1)
        await stack.rows(ALMOST_EMPTY)
        answers: Counter[str] = Counter()

        async def deferred() -> int:
            async with stack.redis() as redis:
                return int(await redis.zcard("deferred"))

        async def is_refused() -> bool:
            fill(small_disk / "ballast")
            answers[await ask(stack)] += 1
            return await deferred() > 0

        if is_log_full:
            fill(small_disk / "ballast")
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                for _ in range(10):
                    await stack.rows("select pg_switch_wal(), pg_logical_emit_message(true, 'test', 'x')")
        await stack.wait_for(is_refused, "a price is deferred", 60)
        refused = time.monotonic()
        while time.monotonic() - refused < FULL_SECONDS:
            answers[await ask(stack)] += 1
            await asyncio.sleep(0.2)
        waiting = await deferred()
        has_ended = stack.postgres.process.poll() is not None
        (small_disk / "ballast").unlink()
        if has_ended:  # as a supervisor would
            await stack.restart_postgres()

        async def all_stored() -> bool:
            return await deferred() == 0

        recovered = await stack.wait_for(all_stored, "deferred prices stored")
        await stack.wait_for_prices(2)
        assert await ask(stack) == "ok"
        history = await check_history(stack)
        name = f"disk{' and log' * is_log_full} full for {time.monotonic() - refused:.0f} s"
        told = ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
        ended = ", PostgreSQL ended" if has_ended else ""
        report(name, history, recovered, f"reads: {told}; {waiting} prices deferred{ended}; 0 prices lost")
        assert answers.keys() <= {"ok", "STORAGE_UNAVAILABLE"}
        assert answers["ok"] or is_log_full
        assert waiting
        assert (history.missing, history.healed) == (0, 0), stack.logs()
        assert (worker.poll(), api.poll()) == (None, None)


async def ask(stack: Stack) -> str:
    answer = await stack.graphql(LATEST)
    return str(answer["errors"][0]["extensions"]["code"]) if "errors" in answer else "ok"
