"""Metrics of a connection pool."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric

from shared.storage.pool import Pool
from shared.telemetry.metrics import Labels, counter, gauge

_STATES = "Connections to PostgreSQL that this process has open, by pool and state (in_use, idle)."
_TIMEOUTS = "Deadlines missed while waiting for a connection (wait) or for an answer of PostgreSQL (statement)."


def pool_metrics(pools: Mapping[str, Pool]) -> Iterator[Metric]:
    """`pools` by name."""
    states: dict[Labels, float] = {}
    timeouts: dict[Labels, float] = {}
    for name, pool in pools.items():
        states |= {(name, "in_use"): pool.in_use, (name, "idle"): max(pool.open - pool.in_use, 0)}
        timeouts |= {(name, "wait"): pool.wait_timeouts, (name, "statement"): pool.statement_timeouts}
    sizes: dict[Labels, float] = {(name,): pool.size for name, pool in pools.items()}
    waiting: dict[Labels, float] = {(name,): pool.waiting for name, pool in pools.items()}
    waits: dict[Labels, float] = {(name,): pool.waits for name, pool in pools.items()}
    yield gauge("pool_connections", _STATES, ["pool", "state"], states)
    yield gauge("pool_connections_max", "Most connections that the pool opens.", ["pool"], sizes)
    yield gauge("pool_waiting", "Statements that are waiting for a connection now.", ["pool"], waiting)
    yield counter("pool_waits", "Statements that waited because all connections were in use.", ["pool"], waits)
    yield counter("pool_timeouts", _TIMEOUTS, ["pool", "kind"], timeouts)
