"""Two API processes behind a balancer, with clients and subscribers: replaced one by one, and one of them killed."""

import asyncio
import time

import pytest

from tests.faults.balancer import open_balancer
from tests.faults.conftest import IS_LONG, Report
from tests.faults.history import check_history
from tests.faults.stack import Stack, quiet_port
from tests.faults.traffic import ABRUPT, open_traffic

ROUNDS = 3 if IS_LONG else 1
DRAIN = {"DRAIN_SECONDS": "5" if IS_LONG else "2"}
"Many times the balancer's check interval, because the machine may be busy."


@pytest.mark.timeout(300)
async def test_a_rolling_deploy_fails_no_request_and_loses_no_price(stack: Stack, report: Report) -> None:
    ports = (stack.api_port, quiet_port())
    apis = dict(zip(ports, await asyncio.gather(*(stack.start_api(port, **DRAIN) for port in ports)), strict=True))
    worker = await stack.start_working()
    await stack.first_fill()
    async with open_balancer(ports) as balancer, open_traffic(stack, balancer) as traffic:
        began = time.monotonic()

        async def both_are_ready() -> bool:
            return balancer.ready == set(ports)

        for _ in range(ROUNDS):
            for port in ports:
                apis[port].terminate()
                assert await asyncio.to_thread(apis[port].wait, 30) == 0
                apis[port] = await stack.start_api(port, **DRAIN)
                await stack.wait_for(both_are_ready, "the balancer has seen the new process")
            # Start the new worker first, because without a worker no slot is fetched.
            new = await stack.start_working()
            worker.terminate()
            assert await asyncio.to_thread(worker.wait, 30) == 0
            worker = new
        took = time.monotonic() - began
        await stack.wait_for_prices(1)
        await traffic.served_again()
        lost = await traffic.lost()
        history = await check_history(stack)
        name = f"{ROUNDS} x both APIs and the worker replaced one by one"
        report(name, history, took / ROUNDS, traffic.told(lost))
        assert traffic.failures == []
        assert [set(f.codes) for f in traffic.followers] == [{1012}] * len(traffic.followers), traffic.codes
        assert (sum(f.in_vain for f in traffic.followers), lost, history.missing) == (0, 0, 0), stack.logs()


@pytest.mark.timeout(300)
async def test_killing_one_of_two_apis_does_not_affect_the_others_clients(stack: Stack, report: Report) -> None:
    victim, other = ports = (stack.api_port, quiet_port())
    killed, _ = await asyncio.gather(*(stack.start_api(port) for port in ports))
    await stack.start_working()
    await stack.first_fill()
    followers = 100 if IS_LONG else 20
    async with open_balancer(ports) as balancer, open_traffic(stack, balancer, 10, followers) as traffic:

        async def is_noticed() -> bool:
            return balancer.ready == {other}

        unaffected = [client for client in traffic.clients if client.process == other]
        killed.kill()
        await stack.wait_for(is_noticed, "the balancer misses the killed process")
        await traffic.served_again(2)
        failures = len(traffic.failures)
        await traffic.served_again()
        assert len(traffic.failures) == failures, "a request was sent to the killed process later"
        assert unaffected
        assert [client.failures for client in unaffected] == [[]] * len(unaffected)

        await stack.start_api(victim)
        await stack.wait_for_prices(1)
        lost = await traffic.lost()
        history = await check_history(stack)
        took = traffic.failures[-1][0] - traffic.failures[0][0] if failures else 0
        report("one of two APIs kill -9", history, took, traffic.told(lost))
        assert set(traffic.codes) == {ABRUPT}
        assert (lost, history.missing) == (0, 0), stack.logs()
