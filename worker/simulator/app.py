"""A simulated exchange that speaks Deribit's JSON-RPC over HTTP and WebSocket, for `make demo` and the tests.

    python -m worker.simulator --host 127.0.0.1 --port 9000 [--seed 1]

GET `/api/v2/public/{method}?…`, or POST a JSON-RPC body there or to `/api/v2`. Shapes, statuses and error codes follow
the exchange's documentation and recorded replies. `testnet` is always true, so that no simulated price looks real.
Assumed, because no recording shows it: the chart's spacing for `1d`, `2d` and `1y`, that a chart point carries the
start of its interval, and the reason given for a bad `range`.

| switch | does |
|---|---|
| `PUT /simulator/faults/{ticker}` | `{"kind": …, "count": n or null, "seconds": s, "methods": […]}`; `*` for all |
| `DELETE /simulator/faults/{ticker}`, `GET /simulator/faults` | removes; lists, with all kinds and their meanings |
| `PUT`, `GET /simulator/clock` | `{"offset_seconds": x}`: how far the exchange's clock runs ahead of the real one |
| `PUT`, `GET /simulator/trades` | `{"recent_hours": n, "traps": true}`: older ones at `/history/api/v2` |
| `PUT`, `GET /simulator/stream` | the WebSocket side, at `/ws/api/v2`: see stream.py |
| `GET`, `DELETE /simulator/requests` | `{method: {ticker: count}}` since the start; resets them |
| `GET /simulator/given?ticker=…&since_us=…` | the last 100,000 prices sent, oldest first; both parameters optional |
"""

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from worker.simulator import faults
from worker.simulator.faults import Fault, Faults, SwitchError
from worker.simulator.prices import CHART_RANGES, EPOCH, KNOWN_TICKERS, chart_points, delivery_price, spot_price
from worker.simulator.protocol import (
    Params,
    RpcError,
    json_response,
    read_call,
    read_choice,
    read_index_name,
    read_integer,
    refuse,
)
from worker.simulator.stream import Stream
from worker.simulator.trades import MAX_COUNT, instruments, page, ticker_of

MAX_GIVEN: Final = 100_000
IS_HISTORY: Final = "the history host was asked"
"A parameter's name that no client sends."
MAX_OFFSET_SECONDS: Final = 10 * 365 * 86_400


class Simulator:
    """One exchange: its clock, the faults switched on, the requests it received and the prices it sent."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.offset_seconds = 0.0
        self.recent_hours: int | None = None
        self.has_trade_traps = True
        self.has_perpetuals = True
        self.faults = Faults()
        self.stream = Stream(self)
        self.requests: Counter[tuple[str, str]] = Counter()
        self.given: deque[dict[str, Any]] = deque(maxlen=MAX_GIVEN)

    def now_us(self) -> int:
        """The exchange's clock: microseconds since the epoch."""
        return time.time_ns() // 1000 + round(self.offset_seconds * 1_000_000)

    async def answer_rpc(self, request: Request) -> Response:
        us_in = self.now_us()
        envelope: dict[str, Any] = {"jsonrpc": "2.0"}
        fault: Fault | None = None
        price: dict[str, Any] | None = None
        status = 200
        try:
            method, params, id_member = await read_call(request)
            envelope |= id_member
            if not isinstance(params, dict):  # the exchange takes named parameters only
                refuse("params", "wrong format")
            ticker = str(params.get("index_name", "") or ticker_of(str(params.get("instrument_name", ""))) or "")[:64]
            self.requests[method if method in METHODS else "unknown", ticker] += 1
            fault = self.faults.take(ticker, method)
            if fault and (response := await faults.replacing_response(fault, request)):
                return response
            if method not in METHODS:
                raise RpcError(-32601, "Method not found")
            if request.url.path.startswith("/history/"):
                params |= {IS_HISTORY: True}
            result = await METHODS[method](self, params, us_in)
            if method == "get_index_price" and (fault is None or fault.kind in faults.PRICE_KEPT):
                price = {"ticker": ticker, "price": str(result["index_price"]), "fault": fault.kind if fault else None}
            envelope["result"] = faults.spoil_result(fault.kind, result) if fault else result
        except RpcError as error:
            envelope["error"] = error.member
            status = 400
        us_out = self.now_us()
        if price:
            self.given.append(price | {"usIn": us_in, "usOut": us_out})
        envelope |= {"usIn": us_in, "usOut": us_out, "usDiff": us_out - us_in, "testnet": True}
        response = json_response(faults.spoil_envelope(fault.kind, envelope) if fault else envelope, status)
        return faults.cut_response(fault.kind, response) if fault else response

    async def switch_fault(self, request: Request) -> Response:
        ticker = request.path_params["ticker"]
        if request.method == "PUT":
            self.faults.put(ticker, Fault.parse(await faults.read_switch(request)))
        elif request.method == "DELETE":
            self.faults.remove(ticker)
        return await self.list_faults(request)

    async def list_faults(self, request: Request) -> Response:
        return json_response({"faults": self.faults.listed(), "kinds": faults.KINDS})

    async def switch_clock(self, request: Request) -> Response:
        if request.method == "PUT":
            offset = (await faults.read_switch(request)).get("offset_seconds")
            self.offset_seconds = faults.read_number(offset, "offset_seconds", -MAX_OFFSET_SECONDS, MAX_OFFSET_SECONDS)
        return json_response({"offset_seconds": self.offset_seconds, "now_us": self.now_us()})

    async def switch_trades(self, request: Request) -> Response:
        if request.method == "PUT":
            switch = await faults.read_switch(request)
            hours, traps = switch.get("recent_hours"), switch.get("traps", True)
            if hours is not None:
                hours = round(faults.read_number(hours, "recent_hours", 0, 87_600))
            if not isinstance(traps, bool):
                raise SwitchError(f"traps {traps!r} is not accepted; give true or false")
            self.recent_hours, self.has_trade_traps = hours, traps
        return json_response({"recent_hours": self.recent_hours, "traps": self.has_trade_traps})

    async def list_requests(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.requests.clear()
        counts: dict[str, dict[str, int]] = {}
        for (method, ticker), count in self.requests.items():
            counts.setdefault(method, {})[ticker] = count
        return json_response(counts)

    async def list_given(self, request: Request) -> Response:
        ticker, since = request.query_params.get("ticker"), request.query_params.get("since_us", "0")
        if not since.isdecimal():
            raise SwitchError(f"since_us {since!r} is not accepted; give microseconds since the epoch")
        since_us = int(since)
        return json_response(
            [one for one in self.given if one["usOut"] >= since_us and ticker in (None, one["ticker"])]
        )


async def get_index_price(simulator: Simulator, params: Params, us_in: int) -> dict[str, Decimal]:
    ticker = read_index_name(params)
    at = EPOCH + timedelta(microseconds=us_in)
    return {
        "estimated_delivery_price": delivery_price(ticker, at, simulator.seed),
        "index_price": spot_price(ticker, at, simulator.seed),
    }


async def get_index_chart_data(simulator: Simulator, params: Params, us_in: int) -> list[tuple[int, Decimal]]:
    ticker = read_index_name(params)
    chart_range = read_choice(params, "range", tuple(CHART_RANGES))
    at = EPOCH + timedelta(microseconds=us_in)
    # In a thread, because the first request for `all` takes a third of a second and would delay spot prices.
    return await run_in_threadpool(chart_points, ticker, chart_range, at, simulator.seed)


async def get_index_price_names(simulator: Simulator, params: Params, us_in: int) -> list[Any]:
    is_extended = params.get("extended", False)
    if is_extended not in (True, False, "true", "false"):
        refuse("extended", "wrong format")
    if is_extended in (False, "false"):
        return list(KNOWN_TICKERS)
    flags = {"future_combo_creation_enabled": False, "option_combo_creation_enabled": False}
    return [{"name": name} | flags for name in KNOWN_TICKERS]


async def get_instruments(simulator: Simulator, params: Params, us_in: int) -> list[Any]:
    if read_choice(params, "kind", ("future", "option", "spot")) != "future":
        return []
    return instruments() if simulator.has_perpetuals else []


async def get_last_trades(simulator: Simulator, params: Params, us_in: int) -> dict[str, Any]:
    instrument = str(params.get("instrument_name"))
    if ticker_of(instrument) is None:
        refuse("instrument_name", "instrument not found")
    now_ms = us_in // 1000
    start, end = (read_integer(params, f"{bound}_timestamp", 0, 10**14) for bound in ("start", "end"))
    count = read_integer(params, "count", 1, MAX_COUNT, default=10)
    if read_choice(params, "sorting", ("asc",)) != "asc":
        refuse("sorting", "wrong format")
    if simulator.recent_hours is not None and IS_HISTORY not in params:
        start = max(start, now_ms - simulator.recent_hours * 3_600_000)
    # In a thread, because a page takes some milliseconds, and live prices must not wait for it.
    rows, has_more = await run_in_threadpool(
        partial(page, instrument, start, min(end, now_ms), count, simulator.seed, has_traps=simulator.has_trade_traps)
    )
    return {"trades": rows, "has_more": has_more}


async def get_time(simulator: Simulator, params: Params, us_in: int) -> int:
    return us_in // 1000


METHODS: Final[dict[str, Callable[[Simulator, Params, int], Awaitable[Any]]]] = {
    "get_index_price": get_index_price,
    "get_index_chart_data": get_index_chart_data,
    "get_index_price_names": get_index_price_names,
    "get_instruments": get_instruments,
    "get_last_trades_by_instrument_and_time": get_last_trades,
    "get_time": get_time,
}


def create_app(seed: int = 1) -> Starlette:
    """The exchange as an ASGI application without a lifespan; `app.state.simulator` is what the switches change."""
    simulator = Simulator(seed)
    app = Starlette(
        routes=[
            Route("/api/v2", simulator.answer_rpc, methods=["POST"]),
            Route("/api/v2/{path:path}", simulator.answer_rpc, methods=["GET", "POST"]),
            Route("/history/api/v2/{path:path}", simulator.answer_rpc, methods=["GET", "POST"]),
            Route("/simulator/trades", simulator.switch_trades, methods=["GET", "PUT"]),
            WebSocketRoute("/ws/api/v2", simulator.stream.serve),
            Route("/simulator/stream", simulator.stream.switch, methods=["GET", "PUT"]),
            Route("/simulator/faults", simulator.list_faults, methods=["GET"]),
            Route("/simulator/faults/{ticker}", simulator.switch_fault, methods=["PUT", "DELETE"]),
            Route("/simulator/clock", simulator.switch_clock, methods=["GET", "PUT"]),
            Route("/simulator/requests", simulator.list_requests, methods=["GET", "DELETE"]),
            Route("/simulator/given", simulator.list_given, methods=["GET"]),
        ],
        exception_handlers={SwitchError: refuse_switch},
    )
    app.state.simulator = simulator
    return app


async def refuse_switch(request: Request, error: Exception) -> Response:
    return json_response({"error": str(error)}, 400)
