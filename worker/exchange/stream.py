"""Prices from the exchange's WebSocket stream, for the schedule's slots. HTTP has what it does not give.

Two sockets are kept open, each replaced after some minutes, or when an index on it is silent: the new one is subscribed
before the old one is closed. So a socket that is cut, as the exchange does now and then, costs nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from arq.connections import ArqRedis
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from websockets.exceptions import ConnectionClosed, WebSocketException

from shared.config.outbound import socket_options
from shared.config.settings import Settings
from shared.errors import describe
from shared.telemetry.metrics import Labels, counter, gauge
from worker.exchange.errors import DeribitError
from worker.exchange.http import Observation
from worker.exchange.sockets.connection import DEAD_SECONDS, SILENT_SECONDS, Connection
from worker.exchange.sockets.feed import MAX_SKEW, Feed
from worker.exchange.sockets.platform import PlatformStates

logger = logging.getLogger(__name__)

SOCKETS = 2
LIFE_SECONDS = 600.0
"The exchange cuts a connection after 15 minutes."

CALL_SPACING_MS = 350
"Between two calls that subscribe: the exchange takes 3.3 a second from an address."
TURN, TURN_SECONDS = "stream:turn", 5.0
"Redis's key, and how long a call waits for its turn."

ASK_AGAIN_SECONDS = 30.0
"For the indices that the exchange did not acknowledge."

CHECK_SECONDS = 0.5
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.25, 20.0
WELL_SECONDS, LONG_WELL_SECONDS = 1.0, 30.0
"A socket that carried every index for so long, before it was closed, or silent or lagging, ends the backoff."

CAUSES = CLOSED, REFUSED, SILENT, LAGGING, AGED = ("closed", "refused", "silent", "lagging", "aged")
MESSAGES = ("used", "repeated", "lagging", "unreadable")


class Stream(Collector):
    """One per worker. It observes nothing until `run` runs."""

    def __init__(self, settings: Settings, redis: ArqRedis, now: Callable[[], datetime]) -> None:
        """`now`: our clock. Raises `SettingsError` if a proxy or certificates cannot be used."""
        self._url = settings.stream_url
        self._options = socket_options(self._url) if settings.streams else {}
        self._redis = redis
        self._now = now
        self._feeds = {ticker: Feed(ticker) for ticker in settings.tickers}
        self._connections: dict[int, Connection] = {}
        self._states = PlatformStates(self._feeds, now)
        self._not_streamed: set[str] = set()
        self._reported: set[str] = set()
        self._has_heartbeats = True
        self._calling = asyncio.Lock()
        self.slots = Counter(stream=0, http=0)
        self._messages = Counter(dict.fromkeys(MESSAGES, 0))
        self._replaced = Counter(dict.fromkeys(CAUSES, 0))

    async def run(self) -> None:
        """Keep the sockets open until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(SOCKETS):
                group.create_task(self._keep(number))

    async def observe(
        self, ticker: str, slot: datetime, interval: timedelta, until: datetime | None = None
    ) -> Observation | None:
        """The first message whose own time is in the slot, awaited while it is due, or `until`. `None`: ask HTTP."""
        feed = self._feeds.get(ticker)
        return await feed.first_in(slot, interval, self._now, lambda: self._has(ticker), until) if feed else None

    def has(self, ticker: str, slot: datetime, interval: timedelta) -> bool:
        """Whether a message of the slot has come."""
        return ticker in self._feeds and self._feeds[ticker].find(slot, interval) is not None

    def state_of(self, ticker: str) -> str | None:
        """What the exchange says of the index, if it is not in operation."""
        return self._states.of(ticker)

    def note_http(self, ticker: str) -> None:
        """A slot has HTTP's price. Reports once an index that only the stream lacks; index_check.py an unknown one."""
        self.slots["http"] += 1
        if ticker in self._not_streamed - self._reported and not self._has(ticker):
            self._reported.add(ticker)
            logger.error("the exchange's stream does not have %s: asked over HTTP", ticker)

    def receive(self, observation: Observation) -> bool:
        now = self._now()
        if abs(now - observation.observed_at) > MAX_SKEW:
            self._messages["lagging"] += 1
            return False
        is_new = self._feeds[observation.ticker].add(observation, now)
        self._messages["used" if is_new else "repeated"] += 1
        self._states.note_price(observation.ticker)
        return True

    def note_state(self, state: Mapping[str, Any]) -> None:
        self._states.note(state)

    def note_unreadable(self) -> None:
        self._messages["unreadable"] += 1

    def note_no_heartbeats(self, error: DeribitError) -> None:
        if self._has_heartbeats:
            logger.warning("the exchange's stream sends no heartbeats: %s", error)
        self._has_heartbeats = False

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        now = self._now()
        yield gauge("stream_sockets", "Sockets that carry prices.", [], {(): len(self._live())})
        ages: dict[Labels, float] = {
            (name,): (now - feed.newest).total_seconds() for name, feed in self._feeds.items() if feed.has_messages
        }
        yield gauge(
            "stream_age_seconds", "How old the stream's newest price is, by the exchange's clock.", ["ticker"], ages
        )
        for name, documentation, label, counts in (
            ("slots_observed", "Observations of slots, by where they came from: stream or http.", "source", self.slots),
            (
                "stream_messages",
                "Prices from the stream: used, repeated (by the other socket), lagging (not of now), unreadable.",
                "outcome",
                self._messages,
            ),
            ("stream_reconnects", "Sockets replaced, and attempts that failed, by cause.", "cause", self._replaced),
        ):
            yield counter(name, documentation, [label], {(value,): count for value, count in counts.items()})

    def _live(self) -> list[Connection]:
        return [connection for connection in list(self._connections.values()) if not connection.reading.done()]

    def _has(self, ticker: str) -> bool:
        return any(connection.has(ticker) for connection in self._live())

    async def _keep(self, number: int) -> None:
        """Open a socket, and before it is closed the next one, again and again."""
        # Staggered, so that the two do not age at the same time.
        life = LIFE_SECONDS * (number + 1) / SOCKETS
        backoff, reported = FIRST_BACKOFF_SECONDS, ""
        try:
            while True:
                try:
                    connection = await self._open()
                except (OSError, WebSocketException, DeribitError) as error:
                    cause, why = REFUSED, describe(error)
                else:
                    old = self._connections.get(number)
                    self._connections[number] = connection
                    if old:
                        await old.close()
                    logger.info("stream socket %d carries %d indices", number + 1, connection.count)
                    cause, why = await self._watch(connection, life)
                    life = LIFE_SECONDS
                    if connection.was_well_for(LONG_WELL_SECONDS if cause in {SILENT, LAGGING} else WELL_SECONDS):
                        backoff = FIRST_BACKOFF_SECONDS
                self._replaced[cause] += 1
                if cause == AGED:
                    logger.info("stream socket %d is replaced, %s: %s", number + 1, cause, why)
                    continue
                pause = backoff * random.uniform(0.75, 1.25)  # noqa: S311
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
                if cause != REFUSED or why != reported:  # an exchange that is unreachable for hours is one line
                    logger.warning("stream socket %d is replaced in %.1f s, %s: %s", number + 1, pause, cause, why)
                reported = why
                await asyncio.sleep(pause)
        finally:
            if number in self._connections:
                await self._connections.pop(number).close()

    async def _open(self) -> Connection:
        """A socket whose subscription is acknowledged. Raises `OSError`, `WebSocketException` or `DeribitError`."""
        connection = await Connection.open(self._url, self._options, self)
        try:
            self._not_streamed |= await connection.subscribe(list(self._feeds), self._turn)
        except BaseException:
            await connection.close()
            raise
        connection.reading.add_done_callback(self._wake)
        return connection

    async def _watch(self, connection: Connection, life: float) -> tuple[str, str]:
        """Until the socket must be replaced. Returns the cause, and what happened."""
        loop = asyncio.get_running_loop()
        old_at, ask_again_at = loop.time() + life, loop.time() + ASK_AGAIN_SECONDS
        with contextlib.suppress(ConnectionClosed):
            await connection.ask_for_heartbeats(self._turn)
        while not (await asyncio.wait({connection.reading}, timeout=CHECK_SECONDS))[0]:
            for ticker in self._feeds:
                if self.state_of(ticker) is not None:
                    connection.excuse(ticker)
            for ticker, is_lagging in connection.silent(SILENT_SECONDS):
                if is_lagging:
                    return LAGGING, f"{ticker}: its clock differs from ours by more than {MAX_SKEW.total_seconds():g} s"
                return SILENT, f"{ticker}: no price for {SILENT_SECONDS:g} s"
            if connection.is_dead():
                return SILENT, f"no message for {DEAD_SECONDS:g} s"
            if loop.time() >= old_at:
                return AGED, "as planned"
            if loop.time() >= ask_again_at and (missing := [name for name in self._feeds if not connection.has(name)]):
                ask_again_at = loop.time() + ASK_AGAIN_SECONDS
                try:
                    self._not_streamed |= await connection.subscribe(missing, self._turn)
                except (OSError, WebSocketException, DeribitError) as error:
                    return REFUSED, describe(error)
        return CLOSED, connection.reading.result()

    async def _turn(self) -> None:
        """Space the calls that subscribe, over all workers; without Redis, over this worker."""
        async with self._calling:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    while not await self._redis.set(TURN, 1, nx=True, px=CALL_SPACING_MS):  # noqa: ASYNC110 # its key expires
                        await asyncio.sleep(CALL_SPACING_MS / 10_000)
            except (RedisError, OSError):
                await asyncio.sleep(CALL_SPACING_MS / 1000)

    def _wake(self, _: object = None) -> None:
        """A socket has ended: who waits for a message may have to ask over HTTP."""
        for feed in self._feeds.values():
            feed.wake()
