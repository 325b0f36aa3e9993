"""What `tests.bench.steady` found, as STEADY.md."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.arrivals import Kind, Phase
from tests.bench.machine import Cores, describe_cpu
from tests.bench.peers import HERE
from tests.bench.report import as_markdown, commit

if TYPE_CHECKING:
    from tests.bench.steady import Found

STEADY = HERE / "STEADY.md"
_LIVE_SECONDS = 5.0


def is_alive(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIVE_SECONDS)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def written(found: Found, kinds: Sequence[Kind], seconds: int, cores: Cores, bound_ms: float, normal_ms: float) -> str:
    sections = [
        ("The peak", _peak(found, bound_ms)),
        (f"80 % of it, for {seconds} s", _held(found, normal_ms)),
        ("Three times the peak", _overload(found, normal_ms)),
        ("All along", _all_along(found)),
        ("What is asked", _asked(found, kinds)),
        ("How it is measured", METHOD.strip()),
    ]
    postgres = " and ".join(map(str, cores.postgres))
    head = f"""# Load held, and overload

`python -m tests.bench.steady` on {datetime.now(UTC):%Y-%m-%d}, commit {commit()}.

- Machine: {describe_cpu()}; the API on core {cores.server}, load generator and sockets on core {cores.load},
  PostgreSQL and the worker on {postgres}
"""
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections)


def _peak(found: Found, bound_ms: float) -> str:
    rows = [["requests a second", "p50 ms", "p99 ms", "not answered"]]
    rows += [
        [f"{rate:,.0f}", f"{phase.answers.p50:.1f}", f"{phase.answers.p99:.0f}", _codes(phase)]
        for rate, phase in sorted(found.steps, key=lambda step: step[0])
    ]
    said = (
        f"{found.peak:,.0f} requests a second, the most that were all answered with a p99 of {bound_ms:.0f} ms at most."
    )
    return f"{said}\n\n{as_markdown(rows)}"


def _held(found: Found, normal_ms: float) -> str:
    held, used = found.held, found.used
    memory = [used.rss[max(len(used.rss) * part // 5 - 1, 0)][1] for part in range(6)]
    rows = [
        ["", "measured"],
        ["requests asked, answered", f"{held.asked:,}, {held.answers.count:,}"],
        ["errors", _codes(held)],
        ["p50, p99, longest", f"{held.answers.p50:.1f}, {held.answers.p99:.0f}, {held.answers.longest:.0f} ms"],
        [
            f"half seconds with a p99 over {normal_ms:.0f} ms",
            f"{sum(w.p99 > normal_ms for w in held.windows)} of {len(held.windows)}",
        ],
        [
            "memory of the API, at first and after each fifth of the time",
            ", ".join(f"{m:.1f}" for m in memory) + " MiB",
        ],
        ["its slope, by least squares without the first minute", f"{used.slope:+.2f} MiB/hour"],
        *[[f"CPU of {name}", f"{cores:.2f} cores"] for name, cores in used.cores.items()],
        [
            "CPU of the API second by second: least, median, most",
            f"{min(used.api):.2f}, {median(used.api):.2f}, {max(used.api):.2f} cores",
        ],
        *[
            [f"of the time {name} could run, but something else did", f"{share:.0%}"]
            for name, share in used.kept.items()
        ],
        ["the generator was late by, p99", f"{found.late_p99:.1f} ms"],
    ]
    return as_markdown(rows)


def _overload(found: Found, normal_ms: float) -> str:
    over, after = found.overload, found.after
    share = over.answers.count / over.asked
    back = "not within the time watched" if found.back_seconds is None else f"{found.back_seconds:.1f} s"
    rows = [
        ["", "measured"],
        ["before it: p99, not answered", f"{found.before.answers.p99:.0f} ms, {_codes(found.before)}"],
        ["requests asked", f"{over.asked:,}"],
        ["answered", f"{over.answers.count:,} ({share:.0%}), {_rate(found.overload):,.0f} a second"],
        ["p50, p99, longest of the answers", _spread(over)],
        ["refused or failed", _codes(over)],
        [
            "p50, p99, longest of the refusals",
            f"{over.refusals.p50:.0f}, {over.refusals.p99:.0f}, {over.refusals.longest:.0f} ms",
        ],
        [f"until all is answered again, each half second with a p99 under {normal_ms:.0f} ms", back],
        ["in the 20 s after it: p99, not answered", f"{after.answers.p99:.0f} ms, {_codes(after)}"],
        ["connections at a time, at most", f"{found.connections:,}"],
        [
            "/livez meanwhile, twice a second",
            f"{found.live} of {found.live_asked} answered, the slowest in {1000 * found.live_longest:.0f} ms",
        ],
    ]
    return as_markdown(rows)


def _all_along(found: Found) -> str:
    sockets, slots = found.sockets, found.slots
    closed = ", ".join(f"{why}: {count}" for why, count in sockets.closed.items()) or "none"
    missing = slots.expected - slots.on_time - slots.healed
    rows = [
        ["from before the peak until after the overload", "measured"],
        [f"prices stored, each for {sockets.sockets} sockets", f"{sockets.prices:,}"],
        ["prices that did not come to a socket, that came twice", f"{sockets.lost}, {sockets.doubled}"],
        ["sockets closed", closed],
        ["slots of the worker, stored on time", f"{slots.on_time:,} of {slots.expected:,}"],
        ["healed from the chart, missing", f"{slots.healed}, {missing}"],
    ]
    return as_markdown(rows)


def _asked(found: Found, kinds: Sequence[Kind]) -> str:
    rows = [["", "of all", "held: p50 ms", "p99 ms", "longest ms", "overload: p99 ms"]]
    for kind in kinds:
        held, over = found.held.kinds[kind.name], found.overload.kinds[kind.name]
        figures = [f"{held.p50:.1f}", f"{held.p99:.0f}", f"{held.longest:.0f}", f"{over.p99:.0f}"]
        rows.append([kind.name, f"{kind.weight:g} %", *figures])
    return as_markdown(rows)


def _spread(phase: Phase) -> str:
    return f"{phase.answers.p50:.0f}, {phase.answers.p99:.0f}, {phase.answers.longest:.0f} ms"


def _rate(phase: Phase) -> float:
    return phase.answers.count / (len(phase.windows) * 0.5)


def _codes(phase: Phase) -> str:
    return ", ".join(f"{code}: {count:,}" for code, count in sorted(phase.codes.items())) or "none"


METHOD = """
Requests arrive at random instants, at a given average rate, and do not wait for each other (an open model): each takes
a free connection or opens one, up to 3,000. A request's time counts from the instant it was due until its last byte
arrived, so delays of the generator count too. Queries are drawn by the shares above. The data are two tickers with
500,000 prices each, with candles, and what the worker adds: a price per second and ticker, from the simulated exchange
that takes 50 ms, and the prices of `fetchPrices`. The limits of fetches are off, because one address asks for all.

- The search for the peak goes in steps of 15 s, each 1.4 times faster, then halves the step three times. A rate counts
  as answered if nothing is refused or fails and p99 is within the bound.
- Each of 500 sockets follows both tickers over graphql-transport-ws, and answers the server's pings. The prices that
  each socket received are compared with the table.
- PostgreSQL runs with fsync off. With only two cores it shares both with the API and the load generator.
- A run of ten minutes or more with all the rows writes this file; `make bench` leaves it alone.
"""
