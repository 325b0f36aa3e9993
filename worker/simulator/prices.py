"""The simulator's prices: a pure function of seed, index and second, so that a test can compute what to expect.

A price is the index's base times one plus a drift plus a noise. The drift is a sum of random walks on grids from one
minute to 192 days, each linear between hashed grid points. The noise is a new hash every second, as the real index is
recomputed every second. Integer arithmetic makes every platform and run equal to the last digit. A price stays within
11.1 % of its base: `btc_usd` lies between 80,000 and 100,000, `eth_usd` between 2,800 and 3,600.

`btc_usd`, `btc_usdc` and `btc_usdt` are one path, as the first two are on the exchange.
"""

import re
import struct
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_CHART_SECOND: Final = int(datetime(2016, 8, 27, 18, tzinfo=UTC).timestamp())
"The beginning of the range `all`, as recorded for the real `btc_usd`."

CHART_RANGES: Final = {
    "1h": (3_600, 6),
    "1d": (86_400, 60),
    "2d": (172_800, 60),
    "1m": (30 * 86_400, 3_600),
    "1y": (365 * 86_400, 21_600),
    "all": (None, 21_600),
}
"""Range -> its length and its spacing, both in seconds. Recorded: the spacings of `1h` and `all`. Documented: that of
`1m`. Assumed, because no recording shows it: 60 s for `1d` and `2d`, 6 h for `1y`, and a month of 30 days."""

SAMPLES_PER_LONG_POINT: Final = 2
_LONGEST_EXACT_SPACING: Final = 60
_CHART_QUANTUM: Final = Decimal("0.0001")

# (length in s, largest move of the price in parts per million of the base). Each length divides the next one. The moves
# grow roughly with the square root of the length, as in a real market.
_GRIDS: Final = (
    (60, 200),
    (600, 500),
    (3_600, 1_200),
    (21_600, 4_000),
    (86_400, 10_000),
    (691_200, 25_000),
    (2_764_800, 30_000),
    (16_588_800, 40_000),
)
_LONGEST_GRID: Final = _GRIDS[-1][0]
_ONE: Final = 32_768 * 1_000_000 * _LONGEST_GRID
_NOISE_STEP: Final = 256 * 30 * _LONGEST_GRID  # the byte 0 is 30 parts per million below the drift
_LEVELS_PER_HASH: Final = 8

_DOLLARS: Final = {
    "btc": 90_000,
    "eth": 3_200,
    "bnb": 900,
    "bch": 550,
    "sol": 150,
    "paxg": 4_000,
    "btcdvol": 45,
    "ethdvol": 65,
    "ltc": 95,
    "avax": 24,
    "xrp": 2,
}
_OTHER_BASES: Final = """
    1000bonk 1000pepe 1000shib aave ada aero algo apt arb atom axs bera blur celo comp crv doge dot drbfix-btc
    drbfix-eth dydx ena ens eos etc ethfi fartcoin fil ftm gala gmx grt hbar hype icp imx inj jup kaito ldo link
    mana matic mkr moodeng near ondo op pendle pol pump render rune s sand sei sky snx stx sui sushi tia ton
    trump trx uni virtual wif wld xlm xtz zec zk
"""
KNOWN_TICKERS: Final = tuple(
    sorted(f"{base}_{quote}" for base in (*_DOLLARS, *_OTHER_BASES.split()) for quote in ("usd", "usdc", "usdt"))
)
_KNOWN: Final = frozenset(KNOWN_TICKERS)
_LOAD_TEST_TICKER: Final = re.compile(r"sim[0-9]+_usd")


def is_known_ticker(ticker: str) -> bool:
    """Listed names, and `sim0_usd`, `sim1_usd`, … for load tests. Case-sensitive, as at the exchange."""
    return ticker in _KNOWN or _LOAD_TEST_TICKER.fullmatch(ticker) is not None


def spot_price(ticker: str, at: datetime, seed: int = 1) -> Decimal:
    """The index in the second of `at` (aware): 2 decimals, or 4 if the base is below 1,000."""
    base, decimals = _base(ticker, seed)
    return Decimal(_units(base, _path(ticker), seed, _second(at))).scaleb(-decimals)


def chart_price(
    ticker: str, start: datetime, spacing_seconds: int, seed: int = 1, until: datetime | None = None
) -> Decimal:
    """The mean price over [start, start + spacing), to 4 decimals; with `until`, only of its seconds up to that one.

    Up to a spacing of 60 s it is the exact mean of the spot prices of every second. Above, it is the mean of
    `SAMPLES_PER_LONG_POINT` spot prices, evenly spaced from `start`, so that ten years of points are fast to compute.
    `start` must be a multiple of the spacing since the epoch; the spacing divides 60, or is a multiple of 120.
    """
    first = _second(start)
    is_exact = spacing_seconds <= _LONGEST_EXACT_SPACING
    if first % spacing_seconds or (60 % spacing_seconds if is_exact else spacing_seconds % 120):
        raise ValueError(f"no chart point of {spacing_seconds} s starts at {start.isoformat()}")
    base, decimals = _base(ticker, seed)
    last = first + spacing_seconds - 1 if until is None else min(_second(until), first + spacing_seconds - 1)
    if last < first:
        raise ValueError("until lies before start")
    if is_exact:
        offset = first % 60
        units = _minute_units(base, _path(ticker), seed, first // 60)[offset : offset + last - first + 1]
    else:
        units = _sampled_units(base, _path(ticker), seed, first, last, spacing_seconds // SAMPLES_PER_LONG_POINT)
    return _mean(units, decimals, _CHART_QUANTUM)


def chart_points(ticker: str, chart_range: str, now: datetime, seed: int = 1) -> list[tuple[int, Decimal]]:
    """Ascending (start of the interval in ms, mean price) for the starts in (now - range, now].

    The newest interval is still running: its value is the mean so far, and changes until the interval ends. That a
    point carries the start of its interval is an assumption; the exchange does not document it.
    """
    length, spacing = CHART_RANGES[chart_range]
    end = _second(now)
    oldest = FIRST_CHART_SECOND if length is None else (end - length) // spacing * spacing + spacing
    return [
        (start * 1000, chart_price(ticker, EPOCH + timedelta(seconds=start), spacing, seed, now))
        for start in range(max(oldest, FIRST_CHART_SECOND), end + 1, spacing)
    ]


def delivery_price(ticker: str, at: datetime, seed: int = 1) -> Decimal:
    """The spot price, or from 07:30 to 08:00 UTC the mean since 07:30, which becomes the settlement price."""
    second = _second(at)
    opening = second // 86_400 * 86_400 + 27_000
    if not opening <= second < opening + 1_800:
        return spot_price(ticker, at, seed)
    base, decimals = _base(ticker, seed)
    minutes = range(opening // 60, second // 60 + 1)
    units = [value for minute in minutes for value in _minute_units(base, _path(ticker), seed, minute)]
    return _mean(units[: second - opening + 1], decimals, Decimal(1).scaleb(-decimals))


def _second(at: datetime) -> int:
    return (at - EPOCH) // timedelta(seconds=1)


def _path(ticker: str) -> str:
    return ticker.rpartition("_")[0]


def _mean(units: list[int] | tuple[int, ...], decimals: int, quantum: Decimal) -> Decimal:
    return (Decimal(sum(units)).scaleb(-decimals) / len(units)).quantize(quantum, ROUND_HALF_EVEN)


@lru_cache(maxsize=4_096)
def _base(ticker: str, seed: int) -> tuple[int, int]:
    """The middle of the index's prices as an integer, and how many of its digits are decimals."""
    path = _path(ticker)
    dollars = _DOLLARS.get(path)
    if dollars is None:
        return 5_000 + int.from_bytes(_hash(seed, path, "base", 0, 8)) % 995_000, 4  # half a dollar to 100 dollars
    return (dollars * 100, 2) if dollars >= 1_000 else (dollars * 10_000, 4)


def _hash(seed: int, path: str, grid: int | str, number: int, size: int) -> bytes:
    return blake2b(f"{seed} {path} {grid} {number}".encode(), digest_size=size).digest()


@lru_cache(maxsize=16_384)
def _levels(seed: int, path: str, grid: int, number: int) -> tuple[int, ...]:
    """The heights of 8 neighbouring grid points, each a signed 16-bit integer, from one hash."""
    return struct.unpack(f"<{_LEVELS_PER_HASH}h", _hash(seed, path, grid, number, 2 * _LEVELS_PER_HASH))


def _drift(path: str, seed: int, second: int) -> int:
    """The drift from the base, in units of base / `_ONE`: exact, and linear within a minute."""
    drift = 0
    for grid, ppm in _GRIDS:
        point, past = divmod(second, grid)
        group, member = divmod(point, _LEVELS_PER_HASH)
        level = _levels(seed, path, grid, group)[member] * (grid - past)
        if past:
            group, member = divmod(point + 1, _LEVELS_PER_HASH)
            level += _levels(seed, path, grid, group)[member] * past
        drift += level * ppm * (_LONGEST_GRID // grid)
    return drift


@lru_cache(maxsize=4_096)
def _noise(path: str, seed: int, minute: int) -> bytes:
    """A byte of noise for each of a minute's 60 seconds."""
    return _hash(seed, path, "noise", minute, 60)


def _price_units(base: int, drift: int, noise: int) -> int:
    return base * (_ONE + drift + (noise - 128) * _NOISE_STEP) // _ONE


def _units(base: int, path: str, seed: int, second: int) -> int:
    return _price_units(base, _drift(path, seed, second), _noise(path, seed, second // 60)[second % 60])


@lru_cache(maxsize=4_096)
def _minute_units(base: int, path: str, seed: int, minute: int) -> tuple[int, ...]:
    """`_units` of 60 seconds at a tenth of the cost, because the drift is linear in integer steps within a minute."""
    start = _drift(path, seed, minute * 60)
    step = (_drift(path, seed, minute * 60 + 60) - start) // 60
    noise = _noise(path, seed, minute)
    return tuple(_price_units(base, start + step * past, noise[past]) for past in range(60))


@lru_cache(maxsize=65_536)
def _sampled_units(base: int, path: str, seed: int, first: int, last: int, step: int) -> tuple[int, ...]:
    """Cached, because every `all` needs the same 15,000 intervals."""
    return tuple(_units(base, path, seed, second) for second in range(first, last + 1, step))
