"""The pace of exports."""

import asyncio

from server.http.export import MAX_BYTES_PER_SECOND, Pace
from tests.unit.fast_loop import run_fast


def test_all_exports_together_have_one_pace() -> None:
    async def export(pace: Pace, seconds: float) -> float:
        for _ in range(100):
            await pace.spend(int(MAX_BYTES_PER_SECOND * seconds / 100))
        return asyncio.get_running_loop().time()

    async def exports() -> list[float]:
        pace = Pace()
        alone = await export(pace, 1)
        await asyncio.sleep(10)  # for which nothing is saved up
        return [alone, *await asyncio.gather(export(pace, 2), export(pace, 2))]

    assert [round(ended, 1) for ended in run_fast(exports())] == [1, 15, 15]
