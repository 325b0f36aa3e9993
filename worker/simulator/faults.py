"""The faults that the simulator can be switched to.

A fault belongs to one index name or to `*`, and affects prices, charts and trades. Some replace the HTTP response, some
spoil the value or the envelope of a correct one, some break the connection.
"""

import asyncio
import json
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, Final, Self

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from worker.simulator.prices import is_known_ticker
from worker.simulator.protocol import RpcError

METHODS: Final = ("get_index_price", "get_index_chart_data", "get_last_trades_by_instrument_and_time")
EVERY_TICKER: Final = "*"
_LONGEST_SECONDS: Final = 3_600

KINDS: Final = {
    "rate_limit_429": "HTTP 429 with an HTML body, from the edge",
    "too_many_requests": "error 10028, HTTP 400",
    "maintenance": "error 11051, HTTP 503, without jsonrpc and clock",
    "internal_error": "error 11094, HTTP 400",
    "bad_gateway": "HTTP 502 with an HTML body, from the edge",
    "redirect": "HTTP 302 to another host",
    "hang": "no answer for `seconds` (60), then the connection is closed",
    "slow": "the right answer after `seconds` (5): the price of usIn, usOut after the wait",
    "drop": "the connection is closed without an answer",
    "truncated": "status 200 and half of the body announced, then the connection is closed",
    "half_json": "a complete HTTP answer with half of the JSON text",
    "wrong_shape": "a list for a price, an object for a chart",
    "missing_price": "a price without `index_price`, chart points without their value",
    "nan": "the literal NaN for every value",
    "infinity": "the literal Infinity for every value",
    "negative": "every value below zero",
    "zero": "every value 0",
    "no_clock": "no usIn, usOut, usDiff",
    "wrong_id": "an id that was not sent",
    "no_price_error": "HTTP 200 with a bare number under `error`, as version 1 of the API had it",
}
PRICE_KEPT: Final = frozenset({"slow", "no_clock", "wrong_id"})
"The faults that leave a price a client can read."
_DEFAULT_SECONDS: Final = {"hang": 60.0, "slow": 5.0}
_RPC_ERRORS: Final = {
    "too_many_requests": (10028, "too_many_requests"),
    "internal_error": (11094, "internal_server_error"),
}

_EDGE_PAGE: Final = """<!DOCTYPE html>
<html><head><title>www.deribit.com | {status}: {reason}</title></head>
<body><h1>Error {status}</h1><h2>{reason}</h2><p>cloudflare</p></body></html>
"""


class SwitchError(Exception):
    """A switch refuses a value; the message says what is accepted."""


@dataclass(frozen=True)
class Fault:
    kind: str
    count: int | None  # how many requests it still hits; None: until it is removed
    seconds: float
    methods: tuple[str, ...] = METHODS

    @classmethod
    def parse(cls, switch: dict[str, Any]) -> Self:
        kind, count, methods = switch.get("kind"), switch.get("count"), switch.get("methods", list(METHODS))
        if unknown := switch.keys() - {"kind", "count", "seconds", "methods"}:
            raise SwitchError(f"unknown members {sorted(unknown)}; accepted are kind, count, seconds, methods")
        if not isinstance(kind, str) or kind not in KINDS:
            raise SwitchError(f"kind {kind!r} is unknown; accepted are {', '.join(KINDS)}")
        if count is not None and (type(count) is not int or count < 1):
            raise SwitchError(f"count {count!r} is not accepted; give a whole number from 1, or null for no end")
        if not isinstance(methods, list) or not methods or any(method not in METHODS for method in methods):
            raise SwitchError(f"methods {methods!r} is not accepted; give a list of {' and '.join(METHODS)}")
        seconds = read_number(switch.get("seconds", _DEFAULT_SECONDS.get(kind, 0.0)), "seconds", 0, _LONGEST_SECONDS)
        return cls(kind, count, seconds, tuple(methods))


class Faults:
    """The faults switched on, by index name. A fault of a name takes precedence over the one of `*`."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}

    def put(self, ticker: str, fault: Fault) -> None:
        if ticker != EVERY_TICKER and not is_known_ticker(ticker):
            raise SwitchError(f"{ticker!r} is not an index of this exchange; give an index name or {EVERY_TICKER}")
        self._faults[ticker] = fault

    def remove(self, ticker: str) -> None:
        self._faults.pop(ticker, None)

    def take(self, ticker: str, method: str) -> Fault | None:
        """The fault for this request, counted as used."""
        for key in (ticker, EVERY_TICKER):
            fault = self._faults.get(key)
            if fault is None or method not in fault.methods:
                continue
            if fault.count == 1:
                del self._faults[key]
            elif fault.count is not None:
                self._faults[key] = replace(fault, count=fault.count - 1)
            return fault
        return None

    def listed(self) -> dict[str, dict[str, Any]]:
        return {ticker: asdict(fault) for ticker, fault in self._faults.items()}


async def read_switch(request: Request) -> dict[str, Any]:
    try:
        switch = json.loads(await request.body())
    except ValueError as error:
        raise SwitchError("the body is not JSON; give a JSON object") from error
    if not isinstance(switch, dict):
        raise SwitchError("the body is not a JSON object")
    return switch


def read_number(value: object, name: str, low: float, high: float) -> float:
    # NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SwitchError(f"{name} {value!r} is not accepted; give a number from {low} to {high}")
    return float(value)


async def replacing_response(fault: Fault, request: Request) -> Response | None:
    """The response of a fault that replaces the correct one. Waits if the fault is to wait."""
    match fault.kind:
        case "hang" | "slow":
            is_gone = await _is_gone_within(request.receive, fault.seconds)
            return BrokenConnection() if is_gone or fault.kind == "hang" else None
        case "drop":
            return BrokenConnection()
        case "rate_limit_429":
            return _edge_response(429, "Too Many Requests")
        case "bad_gateway":
            return _edge_response(502, "Bad gateway")
        case "redirect":
            return RedirectResponse(str(request.url.replace(netloc="elsewhere.invalid")), 302)
        case "maintenance":
            text = '{"error":{"code":11051,"message":"system_maintenance"}}'
            return Response(text, 503, media_type="application/json")
        case "no_price_error":
            return Response('{"success":false,"error":11094,"testnet":true}', media_type="application/json")
    if error := _RPC_ERRORS.get(fault.kind):
        raise RpcError(*error)
    return None


def spoil_result(kind: str, result: Any) -> Any:
    """Spoil a price (an object of decimals), a chart (a list of points) or a page of trades."""
    if isinstance(result, dict) and "trades" in result:
        return _spoil_trades(kind, result)
    is_price = isinstance(result, dict)
    match kind:
        case "wrong_shape":
            return list(result.values()) if is_price else {"points": result}
        case "missing_price" if is_price:
            return {"estimated_delivery_price": result["estimated_delivery_price"]}
        case "missing_price":
            return [(start,) for start, _ in result]
    if is_price:
        return {name: _spoil_value(kind, value) for name, value in result.items()}
    return [(start, _spoil_value(kind, value)) for start, value in result]


def _spoil_trades(kind: str, result: dict[str, Any]) -> Any:
    if kind == "wrong_shape":
        return result["trades"]
    missing = {"index_price": "gone"} if kind == "missing_price" else {}
    return result | {
        "trades": [row | {"index_price": _spoil_value(kind, row["index_price"])} | missing for row in result["trades"]]
    }


def spoil_envelope(kind: str, envelope: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case "no_clock":
            return {name: value for name, value in envelope.items() if not name.startswith("us")}
        case "wrong_id":
            sent = envelope.get("id", 0)
            return envelope | {"id": sent + 1 if isinstance(sent, int) else f"{sent}-other"}
    return envelope


def cut_response(kind: str, response: Response) -> Response:
    match kind:
        case "truncated":
            return BrokenConnection(response)
        case "half_json":
            return Response(
                response.body[: len(response.body) // 2], response.status_code, media_type="application/json"
            )
    return response


class BrokenConnection(Response):
    """Closes the connection without a response, or after half of `cut`'s body although Content-Length announces all.

    ASGI cannot express that, so this uses uvicorn's connection: with httptools and with h11, `receive` is a method of
    the object that has the transport.
    """

    def __init__(self, cut: Response | None = None) -> None:
        super().__init__()
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        if transport is None:
            raise RuntimeError("a broken connection needs uvicorn, whose transport this server does not have")
        if self._cut is None:
            transport.abort()
        else:
            half = self._cut.body[: len(self._cut.body) // 2]
            await send(
                {"type": "http.response.start", "status": self._cut.status_code, "headers": self._cut.raw_headers}
            )
            await send({"type": "http.response.body", "body": half, "more_body": True})
            transport.close()
        # uvicorn logs an unfinished response as an application error unless it has seen the disconnect before.
        await _is_gone_within(receive, 1)


async def _is_gone_within(receive: Receive, seconds: float) -> bool:
    """Wait. Returns early, and True, if the client disconnects."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _edge_response(status: int, reason: str) -> Response:
    return Response(_EDGE_PAGE.format(status=status, reason=reason), status, media_type="text/html")


def _spoil_value(kind: str, value: Decimal) -> Decimal:
    spoiled = {"nan": Decimal("NaN"), "infinity": Decimal("Infinity"), "negative": -value, "zero": Decimal(0)}
    return spoiled.get(kind, value)
