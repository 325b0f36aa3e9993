"""The simulator's WebSocket side, at `/ws/api/v2`: subscriptions to index prices, heartbeats, and what can go wrong.

An index has a message every 950 ms, as recordings show about 61 in 57 s, at its own moment. The prices are those of
HTTP: a pure function of the second. So every socket sends the same messages, and a test can compute them.

| member of `PUT /simulator/stream` | does, until the next `PUT` |
|---|---|
| `"cut": true` | cuts the sockets that are open, once |
| `"cut_every_seconds": s` | cuts each socket after a random time, s on average |
| `"refuse": true` | answers every handshake with HTTP 403 |
| `"silent": [tickers]` | sends no message of them, `["*"]`: of any; the socket stays open |
| `"lag_seconds": s` | sends messages so much later |
| `"garbage": true` | sends text that is no JSON, and prices that are none, instead of messages |
| `"duplicate": true`, `"out_of_order": true` | sends each message twice; sends the one before after it |
| `"unacknowledged": [tickers]` | leaves them out of new subscriptions, as the exchange does with an unknown index |
| `"no_heartbeats": true` | answers `public/set_heartbeat` with an error |
| `"locked": [tickers]`, `"maintenance": true` | says so on `platform_state`, and sends nothing of them |
"""

import asyncio
import contextlib
import json
import random
import zlib
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from worker.simulator.faults import EVERY_TICKER, SwitchError, read_number, read_switch
from worker.simulator.prices import EPOCH, is_known_ticker, spot_price
from worker.simulator.protocol import json_response, to_json

if TYPE_CHECKING:
    from worker.simulator.app import Simulator

PERIOD_MS: Final = 950
_STEP_MS: Final = 50
"Messages of several indices are due together, so that a socket wakes 20 times a second at most."
_MAX_CHANNELS: Final = 500
_CHANNEL, _STATE = "deribit_price_index.", "platform_state"
_OFF: Final[dict[str, Any]] = {
    "cut": False,
    "cut_every_seconds": None,
    "refuse": False,
    "silent": [],
    "lag_seconds": 0,
    "garbage": False,
    "duplicate": False,
    "out_of_order": False,
    "unacknowledged": [],
    "no_heartbeats": False,
    "locked": [],
    "maintenance": False,
}


def newest_message(ticker: str, now_ms: int) -> int:
    """The timestamp of the newest message of an index, in ms."""
    phase = zlib.crc32(ticker.encode()) % (PERIOD_MS // _STEP_MS) * _STEP_MS
    return (now_ms - phase) // PERIOD_MS * PERIOD_MS + phase


class Stream:
    """The sockets of one simulator, and the switches of this side."""

    def __init__(self, simulator: "Simulator") -> None:
        self.simulator = simulator
        self.switches = dict(_OFF)
        self.sockets: set[Socket] = set()

    async def switch(self, request: Request) -> Response:
        if request.method == "PUT":
            switches = await read_switch(request)
            if unknown := switches.keys() - _OFF.keys():
                raise SwitchError(f"unknown members {sorted(unknown)}; accepted are {', '.join(_OFF)}")
            for name, value in switches.items():
                _check(name, value)
            self.switches = _OFF | switches
            if self.switches["cut"]:
                for socket in list(self.sockets):
                    socket.cut()
        return json_response(self.switches | {"sockets": len(self.sockets)})

    async def serve(self, websocket: WebSocket) -> None:
        if self.switches["refuse"]:
            await websocket.close()  # before it is accepted: HTTP 403
            return
        await websocket.accept()
        socket = Socket(self, websocket)
        self.sockets.add(socket)
        sending = asyncio.create_task(socket.send_messages())
        try:
            while True:
                await socket.answer(await websocket.receive_text())
        except (WebSocketDisconnect, RuntimeError):  # the latter when it was cut meanwhile
            pass
        finally:
            self.sockets.discard(socket)
            sending.cancel()

    def is_silent(self, ticker: str) -> bool:
        names = {*self.switches["silent"], *self.switches["locked"]}
        return self.switches["maintenance"] or ticker in names or EVERY_TICKER in names

    def states(self) -> Iterator[dict[str, Any]]:
        """What `platform_state` says now."""
        yield {"maintenance": self.switches["maintenance"]}
        for ticker in self.switches["locked"]:
            yield {"price_index": ticker, "locked": True, "reasons": ["simulated"]}


class Socket:
    def __init__(self, stream: Stream, websocket: WebSocket) -> None:
        self._stream = stream
        self._websocket = websocket
        self._sent: dict[str, int] = {}
        "The timestamp of the newest message sent, of each index subscribed to."
        self._states: list[dict[str, Any]] = []
        self._heartbeat: float | None = None
        self._is_tested = False

    def cut(self) -> None:
        """Without a closing handshake, as a lost network does. ASGI cannot express that, so this uses uvicorn's own."""
        transport = getattr(getattr(self._websocket._receive, "__self__", None), "transport", None)
        if transport is None:
            raise RuntimeError("a cut needs uvicorn, whose transport this server does not have")
        transport.abort()

    async def answer(self, text: str) -> None:
        us_in = self._stream.simulator.now_us()
        try:
            call = json.loads(text)
            method, params, number = call["method"], call.get("params", {}), call["id"]
        except (ValueError, TypeError, KeyError):
            await self._send({"error": {"code": 11050, "message": "bad_request"}})
            return
        outcome: dict[str, Any] = {"result": {"version": "1.2.26"}}
        if method == "public/subscribe":
            outcome["result"] = self._subscribe(params["channels"])
        elif method == "public/set_heartbeat" and self._stream.switches["no_heartbeats"]:
            outcome = {"error": {"code": 11050, "message": "bad_request"}}
        elif method == "public/set_heartbeat":
            self._heartbeat, outcome["result"] = float(params["interval"]), "ok"
        elif method == "public/test":
            self._is_tested = False
        us_out = self._stream.simulator.now_us()
        clock = {"usIn": us_in, "usOut": us_out, "usDiff": us_out - us_in, "testnet": True}
        await self._send({"jsonrpc": "2.0", "id": number} | outcome | clock)

    def _subscribe(self, channels: list[str]) -> list[str]:
        taken = [channel for channel in channels[:_MAX_CHANNELS] if self._takes(channel)]
        for channel in taken:
            if channel != _STATE:
                self._sent.setdefault(channel.removeprefix(_CHANNEL), 0)
        return taken[::-1]  # the exchange's order is not that of the call

    def _takes(self, channel: str) -> bool:
        ticker = channel.removeprefix(_CHANNEL)
        return channel == _STATE or (is_known_ticker(ticker) and ticker not in self._stream.switches["unacknowledged"])

    async def send_messages(self) -> None:
        loop = asyncio.get_running_loop()
        beat_at = loop.time()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                mean = self._stream.switches["cut_every_seconds"]
                if mean and random.random() < _STEP_MS / 1000 / mean:  # noqa: S311
                    self.cut()
                    return
                await self._send_states()
                await self._send_prices()
                if self._heartbeat and loop.time() - beat_at > self._heartbeat:
                    if self._is_tested:
                        await self._websocket.close(4000)
                        return
                    beat_at, self._is_tested = loop.time(), True
                    await self._send({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}})
                await asyncio.sleep((_STEP_MS - self._stream.simulator.now_us() / 1000 % _STEP_MS) / 1000)

    async def _send_states(self) -> None:
        states = list(self._stream.states())
        for ended in self._states:
            if ended not in states and "price_index" in ended:
                await self._notify(_STATE, ended | {"locked": False})
        for state in states:
            if state not in self._states and (self._states or state != {"maintenance": False}):
                await self._notify(_STATE, state)
        self._states = states

    async def _send_prices(self) -> None:
        switches, now_ms = self._stream.switches, self._stream.simulator.now_us() // 1000
        for ticker, sent in list(self._sent.items()):
            timestamp = newest_message(ticker, now_ms - round(switches["lag_seconds"] * 1000))
            if timestamp <= sent or self._stream.is_silent(ticker):
                continue
            self._sent[ticker] = timestamp
            if switches["garbage"]:
                await self._websocket.send_text('{"method":"subscription","params":')
                await self._notify(_CHANNEL + ticker, {"timestamp": timestamp, "price": 0, "index_name": ticker})
                continue
            await self._send_price(ticker, timestamp)
            if switches["duplicate"]:
                await self._send_price(ticker, timestamp)
            if switches["out_of_order"]:
                await self._send_price(ticker, timestamp - PERIOD_MS)

    async def _send_price(self, ticker: str, timestamp: int) -> None:
        price = spot_price(ticker, EPOCH + timedelta(milliseconds=timestamp), self._stream.simulator.seed)
        us = timestamp * 1000
        self._stream.simulator.given.append(
            {"ticker": ticker, "price": str(price), "fault": None, "usIn": us, "usOut": us}
        )
        await self._notify(_CHANNEL + ticker, {"timestamp": timestamp, "price": price, "index_name": ticker})

    async def _notify(self, channel: str, data: dict[str, Any]) -> None:
        await self._send({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._websocket.send_text(to_json(message))


def _check(name: str, value: Any) -> None:
    if isinstance(_OFF[name], bool):
        if not isinstance(value, bool):
            raise SwitchError(f"{name} {value!r} is not accepted; give true or false")
    elif isinstance(_OFF[name], list):
        if not isinstance(value, list) or any(one != EVERY_TICKER and not is_known_ticker(one) for one in value):
            raise SwitchError(f"{name} {value!r} is not accepted; give a list of index names")
    else:
        read_number(value, name, 0, 3_600)
