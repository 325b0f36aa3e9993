"""One socket to the exchange's stream: subscribes, answers heartbeats, and reads messages until it ends."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from itertools import count
from typing import Any, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from shared.version import VERSION
from worker.exchange.errors import DeribitError, rpc_error
from worker.exchange.http import Observation, parse_instant, parse_price

PRICE_CHANNEL, STATE_CHANNEL = "deribit_price_index.", "platform_state"

SILENT_SECONDS = 3.0
"An index without a usable message for so long: the socket may be dead, and must be replaced."

ANSWER_SECONDS = 5.0
_HEARTBEAT_SECONDS = 10
"The least that the exchange takes."
DEAD_SECONDS = 2.5 * _HEARTBEAT_SECONDS
"A socket without any message for so long is dead, whatever is known of its indices."
_CHANNELS_A_CALL = 250
"The exchange takes 500, but no call of more than 32 kB, and a name may have 64 characters."
_MAX_MESSAGE_BYTES = 64 * 1024


class Receiver(Protocol):
    """What a connection passes its messages to."""

    def receive(self, observation: Observation) -> bool:
        """Returns whether its clock is near ours."""
        ...

    def note_state(self, state: Mapping[str, Any]) -> None: ...

    def note_unreadable(self) -> None: ...

    def note_no_heartbeats(self, error: DeribitError) -> None: ...


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        """Refuse every redirect, because it could lead to foreign prices."""
        return exc


class Connection:
    def __init__(self, socket: ClientConnection, url: str, receiver: Receiver) -> None:
        self._socket = socket
        self._receiver = receiver
        self._testnet = str(urlsplit(url).hostname).startswith("test.")
        self._ids = count(1)
        self._heartbeat_id = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked: set[str] = set()
        self._heard_at: dict[str, float] = {}
        "Of each index acknowledged: the loop's time of its last usable message, or of the acknowledgement."
        self._unheard: set[str] = set()
        self._lagging: set[str] = set()
        self._well_at: float | None = None
        "The loop's time at which every index had been heard."
        self._alive_at = asyncio.get_running_loop().time()
        self.reading = asyncio.create_task(self._read())
        "Its result says why the socket has ended."

    @classmethod
    async def open(cls, url: str, options: Mapping[str, Any], receiver: Receiver) -> "Connection":
        """Raises `OSError`, `TimeoutError` or `WebSocketException`."""
        socket = await _Connect(
            url,
            compression=None,
            max_size=_MAX_MESSAGE_BYTES,
            open_timeout=ANSWER_SECONDS,
            close_timeout=1,
            ping_interval=None,  # the exchange's heartbeats and SILENT_SECONDS notice more
            user_agent_header=f"deribit-price-collector/{VERSION}",
            **options,
        )
        return cls(socket, url, receiver)

    def has(self, ticker: str) -> bool:
        """Whether the exchange has acknowledged the index."""
        return ticker in self._heard_at

    @property
    def count(self) -> int:
        """Of the indices acknowledged."""
        return len(self._heard_at)

    async def subscribe(self, tickers: Sequence[str], turn: Callable[[], Awaitable[None]]) -> set[str]:
        """Returns the tickers that the exchange did not acknowledge. `turn`: waits before each call.

        Raises `DeribitError`, `TimeoutError` or `ConnectionClosed`.
        """
        self._asked.update(tickers)
        for start in range(0, len(tickers), _CHANNELS_A_CALL):
            channels = [PRICE_CHANNEL + ticker for ticker in tickers[start : start + _CHANNELS_A_CALL]]
            await turn()
            result = await self._call("public/subscribe", {"channels": [*channels, STATE_CHANNEL]})
            names = set(result) if isinstance(result, list) and all(isinstance(name, str) for name in result) else set()
            taken = [channel.removeprefix(PRICE_CHANNEL) for channel in channels if channel in names]
            self._heard_at |= dict.fromkeys(taken, asyncio.get_running_loop().time())
            self._unheard.update(taken)
        return set(tickers) - set(self._heard_at)

    async def ask_for_heartbeats(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Without waiting for the answer, because prices come without them. Raises `ConnectionClosed`."""
        await turn()
        self._heartbeat_id = next(self._ids)
        await self._send(self._heartbeat_id, "public/set_heartbeat", {"interval": _HEARTBEAT_SECONDS})

    def silent(self, silent_for: float) -> list[tuple[str, bool]]:
        """The indices without a usable message for so long, each with whether it had messages of another time."""
        since = asyncio.get_running_loop().time() - silent_for
        return [(ticker, ticker in self._lagging) for ticker, at in self._heard_at.items() if at < since]

    def excuse(self, ticker: str) -> None:
        """Do not call the index silent for as long again."""
        if ticker in self._heard_at:
            self._heard_at[ticker] = asyncio.get_running_loop().time()

    def is_dead(self) -> bool:
        return asyncio.get_running_loop().time() - self._alive_at > DEAD_SECONDS

    def was_well_for(self, seconds: float) -> bool:
        """Whether it has carried every index, and lived so long after that."""
        return self._well_at is not None and asyncio.get_running_loop().time() - self._well_at >= seconds

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.wait([self.reading])
        await self._socket.close()

    async def _call(self, method: str, parameters: Mapping[str, Any]) -> Any:
        """The result of a method. Raises `DeribitError`, `TimeoutError` or `ConnectionClosed`."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._send(number, method, parameters)
                await asyncio.wait({answer, self.reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._answers[number]
        if not answer.done():
            raise DeribitError("DISCONNECTED", self.reading.result())
        envelope = answer.result()
        if envelope.get("error") is not None:
            raise rpc_error(envelope["error"])
        if isinstance(envelope.get("testnet"), bool):
            self._testnet = envelope["testnet"]
        return envelope.get("result")

    async def _send(self, number: int, method: str, parameters: Mapping[str, Any]) -> None:
        await self._socket.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}))

    async def _read(self) -> str:
        try:
            async for text in self._socket:
                self._alive_at = asyncio.get_running_loop().time()
                try:
                    # Decimals from the text, because a float loses digits.
                    await self._take(json.loads(text, parse_float=Decimal, parse_constant=Decimal))
                except (ValueError, ArithmeticError, RecursionError, DeribitError):
                    self._receiver.note_unreadable()
        except ConnectionClosed:
            pass
        return f"closed with {self._socket.close_code} {self._socket.close_reason}".strip()

    async def _take(self, message: object) -> None:
        match message:
            case {"method": "subscription", "params": {"channel": str(channel), "data": dict(data)}}:
                if channel == STATE_CHANNEL:
                    self._receiver.note_state(data)
                else:
                    self._take_price(channel.removeprefix(PRICE_CHANNEL), data)
            case {"method": "heartbeat", "params": {"type": "test_request"}}:
                await self._send(next(self._ids), "public/test", {})
            case {"method": "heartbeat"}:
                pass
            case {"id": int(number)} if isinstance(message, dict):
                answer = self._answers.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(message)
                elif number == self._heartbeat_id and message.get("error") is not None:
                    self._receiver.note_no_heartbeats(rpc_error(message["error"]))
            case _:
                self._receiver.note_unreadable()

    def _take_price(self, ticker: str, data: Mapping[str, Any]) -> None:
        milliseconds = data.get("timestamp")
        if ticker not in self._asked or data.get("index_name", ticker) != ticker or type(milliseconds) is not int:
            self._receiver.note_unreadable()
            return
        observation = Observation(
            ticker, parse_price(data.get("price")), parse_instant(milliseconds * 1000), self._testnet
        )
        if not self._receiver.receive(observation):
            self._lagging.add(ticker)
            return
        now = asyncio.get_running_loop().time()
        self._lagging.discard(ticker)
        self._heard_at[ticker] = now
        if self._unheard:
            self._unheard.discard(ticker)
            self._well_at = None if self._unheard else now
