"""Replies in the exchange's real shape, as text: a price is a bare number whose digits matter."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import httpx
import pytest

from shared.config.settings import Settings, load_settings
from shared.grid import from_microseconds
from shared.storage.missed_slots import GapReason
from worker.context import Worker
from worker.exchange.background import Background
from worker.exchange.errors import DeribitError, Retry
from worker.exchange.http import ChartPoint, Observation, create_http, get_index_chart, get_index_price

US_IN, US_OUT = 1791434504596178, 1791434504601145
OBSERVED_AT: datetime = from_microseconds(US_OUT)
CLOCKS = f'"usIn":{US_IN},"usOut":{US_OUT},"usDiff":{US_OUT - US_IN}'
RESULT = '{"estimated_delivery_price":82477.5,"index_price":82477.96}'
WWW = "https://www.deribit.com/api/v2"

Handler = Callable[[httpx.Request], httpx.Response]
Fault = tuple[str, str, Retry, GapReason]


def settings_for(base_url: str = WWW, **others: Any) -> Settings:
    return load_settings(
        database_url="postgresql://localhost/unused",
        redis_url="redis://localhost",
        deribit_base_url=base_url,
        **others,
    )


def reply(result: str = RESULT, members: str = f'{CLOCKS},"testnet":false') -> str:
    return f'{{"jsonrpc":"2.0","result":{result},{members}}}'


def price_reply(price: str) -> str:
    return reply(f'{{"estimated_delivery_price":1.5,"index_price":{price}}}')


def answering(body: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    return lambda _: httpx.Response(status, content=body, headers=headers)


async def ask(handler: Handler | str | bytes, status: int = 200, base_url: str = WWW) -> Observation:
    """The price of `btc_usd` from an exchange that answers so."""
    answer = handler if callable(handler) else answering(handler, status)
    async with create_http(settings_for(base_url), httpx.MockTransport(answer)) as http:
        return await get_index_price(http, "btc_usd")


async def ask_chart(handler: Handler | str, chart_range: str = "1h") -> list[ChartPoint]:
    answer = handler if callable(handler) else answering(handler)
    async with create_http(settings_for(), httpx.MockTransport(answer)) as http:
        return await get_index_chart(http, "btc_usd", chart_range)


async def refusal(handler: Handler | str | bytes, status: int = 200, base_url: str = WWW) -> Fault:
    """As `ask`, of a reply that has to be refused: all that is known of the error."""
    with pytest.raises(DeribitError) as caught:
        await ask(handler, status, base_url)
    return fault(caught.value)


def fault(error: DeribitError) -> Fault:
    assert str(error) == f"{error.code}: {error.detail}"
    return error.code, error.detail, error.retry, error.reason


def in_turn(outcomes: Sequence[httpx.Response | Exception], asked: list[httpx.Request]) -> Handler:
    """One outcome after the other; `asked` collects the requests."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        outcome = outcomes[len(asked) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return answer


def unspaced(http: httpx.AsyncClient) -> Background:
    """Requests for past prices as they are without Redis: none waits."""
    unused: Any = None
    background = Worker(settings_for(), unused, unused, http, name="unit:1").background

    @asynccontextmanager
    async def request(method: str) -> AsyncIterator[None]:
        yield

    background.request = request  # type: ignore[method-assign]
    return background
