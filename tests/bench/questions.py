"""The questions, as each kind of server is asked them, and the rows that are the right answer."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import asyncpg

from tests.bench.data import LAST_MINUTE, ROWS_PER_TICKER, TICKERS

Row = tuple[object, ...]

_FIELDS = "price timestamp source"
_LAST = datetime.fromisoformat(LAST_MINUTE)
_WINDOWS = 512  # more than the project remembers requests: each is read anew
_CHECKED = 8

DOCUMENTS = {
    "latest": f"query ($ticker: String!) {{ latestPrice(ticker: $ticker) {{ {_FIELDS} }} }}",
    "history": f"""query ($ticker: String!, $limit: Int!) {{
        priceHistory(ticker: $ticker, limit: $limit) {{ {_FIELDS} }}
    }}""",
    "period": f"""query ($ticker: String!, $from_dt: DateTime!, $to_dt: DateTime!, $limit: Int!) {{
        pricesInPeriod(ticker: $ticker, fromDt: $from_dt, toDt: $to_dt, limit: $limit) {{ {_FIELDS} }}
    }}""",
    "four": f"""query ($first: String!, $second: String!, $limit: Int!) {{
        a: latestPrice(ticker: $first) {{ {_FIELDS} }}
        b: latestPrice(ticker: $second) {{ {_FIELDS} }}
        c: priceHistory(ticker: $first, limit: $limit) {{ {_FIELDS} }}
        d: priceHistory(ticker: $second, limit: $limit) {{ {_FIELDS} }}
    }}""",
    "candles": """query ($ticker: String!, $from_dt: DateTime!, $to_dt: DateTime!) {
        candles(ticker: $ticker, interval: ONE_MINUTE, fromDt: $from_dt, toDt: $to_dt, limit: 1440) {
            start open high low close samples complete
        }
    }""",
    "tickers": f"{{ tickers {{ name stale firstTimestamp latest {{ {_FIELDS} }} }} }}",
    "coverage": """query ($ticker: String!, $from_dt: DateTime!, $to_dt: DateTime!) {
        coverage(ticker: $ticker, fromDt: $from_dt, toDt: $to_dt) { expected present gaps { fromDt toDt reason } }
    }""",
}
DOCUMENTS["get"] = DOCUMENTS["latest"]


@dataclass(frozen=True)
class Question:
    """The same question several times over with other values, as clients ask it."""

    name: str
    label: str
    variables: list[dict[str, Any]]
    peers: frozenset[str] | None = None
    "Those that can be asked this, besides this project; `None`: all."

    @property
    def sample(self) -> list[dict[str, Any]]:
        """Those whose answers are compared with the table."""
        return self.variables[:: max(1, len(self.variables) // _CHECKED)]


def _windows() -> list[dict[str, Any]]:
    """Periods of a week all over the data, of which the first thousand prices are asked for."""
    first = _LAST - timedelta(minutes=ROWS_PER_TICKER - 1)
    step = timedelta(minutes=ROWS_PER_TICKER // (_WINDOWS + 1))
    starts = [first + step * n for n in range(_WINDOWS)]
    return [
        {
            "ticker": TICKERS[n % 2],
            "from_dt": start.isoformat(),
            "to_dt": (start + timedelta(days=7)).isoformat(),
            "limit": 1000,
        }
        for n, start in enumerate(starts)
    ]


_DAY = {"from_dt": (_LAST - timedelta(minutes=1439)).isoformat(), "to_dt": LAST_MINUTE}

QUESTIONS = (
    Question("latest", "latestPrice", [{"ticker": ticker} for ticker in TICKERS]),
    Question("history", "priceHistory 100", [{"ticker": ticker, "limit": 100} for ticker in TICKERS]),
    Question("period", "pricesInPeriod 1000", _windows()),
    Question(
        "four",
        "4 root fields",
        [{"first": one, "second": other, "limit": 20} for one, other in (TICKERS, TICKERS[::-1])],
    ),
    Question(
        "candles",
        "candles, a day of minutes",
        [{"ticker": ticker, **_DAY} for ticker in TICKERS],
        frozenset({"limit1", "limit2", "mercurius", "strawberry", "brief"}),
    ),
    Question("tickers", "tickers", [{}], frozenset()),
    Question("coverage", "coverage of a day", [{"ticker": ticker, **_DAY} for ticker in TICKERS], frozenset()),
    Question("get", "latestPrice by GET", [{"ticker": ticker} for ticker in TICKERS], frozenset()),
)
PRICES = QUESTIONS[:4]


def to_graphql(question: Question, variables: dict[str, Any]) -> str:
    if question.name == "get":
        given = urlencode({"query": DOCUMENTS["get"], "variables": json.dumps(variables)})
        return f"GET /graphql?{given} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n"
    return _post(DOCUMENTS[question.name], variables)


def to_postgraphile(question: Question, variables: dict[str, Any]) -> str:
    """Other names for the same: its fields are functions of the database, a single price is a list of one."""
    document = DOCUMENTS[question.name].replace("DateTime!", "Datetime!")
    for name in ("latestPrice", "priceHistory", "pricesInPeriod"):
        document = document.replace(f"{name}(", f"{name}List(")
    return _post(document, variables)


def to_rest(question: Question, variables: dict[str, Any]) -> str:
    return f"GET /{question.name}?{urlencode(variables)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"


def _post(document: str, variables: dict[str, Any]) -> str:
    body = json.dumps({"query": " ".join(document.split()), "variables": variables})
    return (
        "POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}"
    )


def read_rows(body: bytes) -> list[list[Row]]:
    """What an answer says, whatever its shape and spelling: the rows of each thing asked for."""
    answer = json.loads(body)
    if isinstance(answer, dict) and ("errors" in answer or "detail" in answer):
        raise ValueError(f"the answer is an error: {body[:500]!r}")
    if isinstance(answer, dict) and "data" in answer:
        answer = answer["data"]
    parts = [answer] if isinstance(answer, list) or "price" in answer else list(answer.values())
    return [[_row(row) for row in (part if isinstance(part, list) else [part])] for part in parts]


def _row(row: dict[str, Any]) -> Row:
    if "latest" in row:
        return _row(row["latest"])
    if "expected" in row:
        return row["expected"], row["present"]
    if "open" in row:
        assert isinstance(row["open"], str), "a price that went through a float"
        start = datetime.fromisoformat(row["start"]).astimezone(UTC)
        return (
            start,
            *(Decimal(row[name]) for name in ("open", "high", "low", "close")),
            row["samples"],
            row["complete"],
        )
    assert isinstance(row["price"], str), "a price that went through a float"
    return Decimal(row["price"]), datetime.fromisoformat(row["timestamp"]).astimezone(UTC), row["source"]


async def select_rows(
    connection: "asyncpg.Connection[asyncpg.Record]", question: Question, variables: dict[str, Any]
) -> list[list[Row]]:
    """The right answer, straight from the table."""

    async def select(condition: str, *arguments: object) -> list[Row]:
        rows = await connection.fetch(
            f"select price, timestamp, source::text from prices where {condition}", *arguments
        )
        return [(row["price"], row["timestamp"], row["source"]) for row in rows]

    newest = "ticker = $1 order by timestamp desc limit $2"
    match question.name:
        case "latest" | "get":
            return [await select(newest, variables["ticker"], 1)]
        case "history":
            return [await select(newest, variables["ticker"], variables["limit"])]
        case "period":
            within = "ticker = $1 and timestamp between $2 and $3 order by timestamp limit $4"
            bounds = [datetime.fromisoformat(variables[name]) for name in ("from_dt", "to_dt")]
            return [await select(within, variables["ticker"], *bounds, variables["limit"])]
        case "tickers":
            return [[row for ticker in TICKERS for row in await select(newest, ticker, 1)]]
        case "coverage":
            return [[(1439, 1439)]]  # `toDt` is exclusive
        case "candles":
            candles = await connection.fetch(
                """
                    select timestamp as start, price, price, price, price, 1, true
                    from prices
                    where ticker = $1
                      and timestamp between $2 and $3
                    order by timestamp
                """,
                variables["ticker"],
                *[datetime.fromisoformat(variables[name]) for name in ("from_dt", "to_dt")],
            )
            return [[tuple(row) for row in candles]]
        case _:
            tickers = (variables["first"], variables["second"])
            return [
                *[await select(newest, ticker, 1) for ticker in tickers],
                *[await select(newest, ticker, variables["limit"]) for ticker in tickers],
            ]
