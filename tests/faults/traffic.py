"""Clients during a fault: some send queries, others subscribe to prices and reconnect."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.typing import Subprotocol

from tests.faults.balancer import Balancer
from tests.faults.stack import TICKERS, Stack

LATEST = '{ latestPrice(ticker: "btc_usd") { price timestamp } }'
FOLLOW = """subscription ($tickers: [String!], $since: DateTime) {
    priceUpdates(tickers: $tickers, since: $since) { ticker price timestamp }
}"""
PAUSE_SECONDS = 0.02
ABRUPT = 1006
"The code of a connection that was closed without one."


class Client:
    """Sends one query after the other, on one connection while it lasts. It retries nothing."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self.answered = 0
        self.failures: list[tuple[float, str]] = []
        "Time and kind of each failure."
        self.process: int | None = None
        "The port of the process that sent the last answer."

    async def ask(self) -> None:
        url = f"http://127.0.0.1:{self._balancer.port}/graphql"
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            while True:
                try:
                    async with http.stream("POST", url, json={"query": LATEST}) as response:
                        own_port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
                        self.process = self._balancer.process_of[own_port]
                        answer = json.loads(await response.aread())
                    if "errors" in answer:
                        self._fail(answer["errors"][0]["extensions"]["code"])
                    else:
                        self.answered += 1
                except httpx.TransportError as error:
                    self._fail(type(error).__name__)
                await asyncio.sleep(PAUSE_SECONDS)

    def _fail(self, what: str) -> None:
        self.failures.append((time.monotonic(), what))


class Follower:
    """Subscribes to two tickers, and reconnects with `since` whenever the socket is closed."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self.seen: dict[tuple[str, str], str] = {}
        "Prices by ticker and timestamp."
        self.codes: list[int] = []
        "The close code of each connection."
        self.in_vain = 0
        "Failed attempts to reconnect."
        self._newest: dict[str, str] = {}

    @property
    def has_all_tickers(self) -> bool:
        return len(self._newest) == len(TICKERS)

    async def follow(self) -> None:
        while True:
            try:
                async with connect(
                    f"ws://127.0.0.1:{self._balancer.port}/graphql",
                    subprotocols=[Subprotocol("graphql-transport-ws")],
                    proxy=None,
                    open_timeout=10,
                ) as connection:
                    await self._listen(connection)
            except ConnectionClosed as closed:
                self.codes.append(closed.rcvd.code if closed.rcvd else ABRUPT)
            except (OSError, EOFError, InvalidHandshake, InvalidMessage):
                self.in_vain += 1
                await asyncio.sleep(PAUSE_SECONDS)

    async def _listen(self, connection: ClientConnection) -> None:
        since = min(self._newest.values()) if self.has_all_tickers else None
        subscribe: dict[str, Any] = {"query": FOLLOW, "variables": {"tickers": TICKERS, "since": since}}
        await connection.send('{"type":"connection_init"}')
        await connection.send(json.dumps({"type": "subscribe", "id": "1", "payload": subscribe}))
        while (message := json.loads(await connection.recv()))["type"] != "complete":
            if message["type"] == "next" and "errors" not in message["payload"]:
                price = message["payload"]["data"]["priceUpdates"]
                ticker, timestamp = price["ticker"], price["timestamp"]
                self.seen[ticker, timestamp] = price["price"]
                self._newest[ticker] = max(self._newest.get(ticker, timestamp), timestamp)


class Traffic:
    def __init__(self, stack: Stack, balancer: Balancer, clients: int, followers: int) -> None:
        self._stack = stack
        self.clients = [Client(balancer) for _ in range(clients)]
        self.followers = [Follower(balancer) for _ in range(followers)]
        self._begin = ""

    async def begin(self) -> None:
        """Wait until every client has an answer; from then on each subscriber must get every price."""

        async def all_are_served() -> bool:
            return all(client.answered for client in self.clients) and all(f.has_all_tickers for f in self.followers)

        await self._stack.wait_for(all_are_served, "everyone is answered")
        # Earlier prices may belong to a first fill that the process was still reading.
        self._begin = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"

    @property
    def failures(self) -> list[tuple[float, str]]:
        return sorted(failure for client in self.clients for failure in client.failures)

    @property
    def codes(self) -> Counter[int]:
        return Counter(code for follower in self.followers for code in follower.codes)

    async def served_again(self, answers: int = 10) -> None:
        """Wait until each client has that many more answers."""
        wanted = [client.answered + answers for client in self.clients]

        async def are_answered() -> bool:
            return all(c.answered >= count for c, count in zip(self.clients, wanted, strict=True))

        await self._stack.wait_for(are_answered, "every client is answered again")

    async def lost(self) -> int:
        """The number of stored prices that a subscriber did not get, over all subscribers, after the newest arrived."""
        sql = """
            select ticker, to_char(timestamp at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as timestamp, price
            from prices
            where to_char(timestamp at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') >= $1
        """
        rows = await self._stack.rows(sql, self._begin)
        stored = {(row["ticker"], row["timestamp"]) for row in rows}

        async def have_the_newest() -> bool:
            newest = {ticker: max(at for name, at in stored if name == ticker) for ticker in TICKERS}
            return all(newest.items() <= follower.seen.keys() for follower in self.followers)

        await self._stack.wait_for(have_the_newest, "every follower has the newest price")
        wrong = [row for row in rows for f in self.followers if f.seen.get((row[0], row[1]), "") != str(row["price"])]
        return len(wrong)

    def told(self, lost: int) -> str:
        """One line for a table."""
        failures, answered = self.failures, sum(client.answered for client in self.clients)
        kinds = Counter(what for _, what in failures)
        closed = ", ".join(f"{count} with {code}" for code, count in sorted(self.codes.items())) or "none"
        seconds = f" within {failures[-1][0] - failures[0][0]:.1f} s {dict(kinds)}" if failures else ""
        return (
            f"{len(failures)} of {answered + len(failures)} requests failed{seconds}; {len(self.followers)} sockets, "
            f"closed: {closed}, failed reconnects: {sum(f.in_vain for f in self.followers)}; {lost} prices lost"
        )


@asynccontextmanager
async def open_traffic(
    stack: Stack, balancer: Balancer, clients: int = 4, followers: int = 20
) -> AsyncIterator[Traffic]:
    traffic = Traffic(stack, balancer, clients, followers)
    tasks = [asyncio.create_task(client.ask()) for client in traffic.clients]
    tasks += [asyncio.create_task(follower.follow()) for follower in traffic.followers]
    try:
        await traffic.begin()
        yield traffic
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
