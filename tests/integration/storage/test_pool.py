"""What the pool guarantees on the side of PostgreSQL."""

import asyncio

import pytest

from shared.config.settings import Settings
from shared.errors import StorageUnavailable
from shared.storage.database import Pool, create_pool, fetch

ACTIVE = """
    select count(*)::int
    from pg_stat_activity
    where application_name = 'cancelling'
      and state = 'active'
      and pid <> pg_backend_pid()
"""


async def test_a_cancelled_statement_has_ended_before_its_connection_is_free(settings: Settings) -> None:
    """Otherwise a client that cancels again and again could run more statements than the pool has connections."""
    async with create_pool(settings, name="cancelling", size=2) as pool:
        for _ in range(5):
            asking = [asyncio.create_task(fetch(pool, "select pg_sleep(30)")) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in asking:
                task.cancel()
            for task in asking:
                with pytest.raises(asyncio.CancelledError):
                    await task
            [[active]] = await fetch(pool, ACTIVE)
            assert active <= 1  # in the other place
        async with asyncio.timeout(5):
            while (await fetch(pool, ACTIVE))[0][0]:
                await asyncio.sleep(0.01)


async def test_a_connection_to_a_demoted_primary_is_not_used_again(settings: Settings, pool: Pool) -> None:
    async with create_pool(settings, name="demoted", size=3) as demoted:
        write = "delete from prices"
        readonly = "select set_config('default_transaction_read_only', 'on', false) from (select pg_sleep(0.05)) as s"
        await asyncio.gather(*(fetch(demoted, readonly) for _ in range(3)))
        with pytest.raises(StorageUnavailable):
            await fetch(demoted, write)
        shown = "select current_setting('transaction_read_only') from (select pg_sleep(0.05)) as s"
        assert [rows[0][0] for rows in await asyncio.gather(*(fetch(demoted, shown) for _ in range(3)))] == ["off"] * 3


CUT = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cut' and state = 'active'"


@pytest.mark.parametrize("only_reads", [True, False])
async def test_a_read_is_retried_once_after_a_lost_connection(settings: Settings, pool: Pool, only_reads: bool) -> None:
    async with create_pool(settings, name="cut", only_reads=only_reads) as cut:
        asked = asyncio.create_task(fetch(cut, "select 1 from (select pg_sleep(0.3)) as s", timeout=30))
        async with asyncio.timeout(20):
            while not await fetch(pool, CUT):
                await asyncio.sleep(0.01)
        if only_reads:
            assert [tuple(row) for row in await asked] == [(1,)]
        else:
            with pytest.raises(StorageUnavailable):
                await asked


async def test_a_deadlock_is_storage_unavailable(settings: Settings, pool: Pool) -> None:
    """As is a standby's recovery conflict: both are transaction rollbacks, which may be retried."""
    async with create_pool(settings, name="raising") as raising:
        with pytest.raises(StorageUnavailable):
            await fetch(raising, "do $$ begin raise exception sqlstate '40P01'; end $$")
