"""Metrics of a connection pool."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric

from shared.storage.pool import Pool
from shared.telemetry.metrics import Labels, counter, gauge


def pool_metrics(pools: Mapping[str, Pool]) -> Iterator[Metric]:
    """`pools` by name."""
    states: dict[Labels, float] = {}
    for name, pool in pools.items():
        states[name, "in_use"] = pool.in_use
        states[name, "idle"] = max(pool.open - pool.in_use, 0)
    yield gauge(
        "pool_connections",
        "Connections to PostgreSQL that this process has open, by pool and state (in_use, idle).",
        ["pool", "state"],
        states,
    )
    yield gauge(
        "pool_connections_max",
        "Most connections that the pool opens.",
        ["pool"],
        {(name,): pool.size for name, pool in pools.items()},
    )
    yield gauge(
        "pool_waiting",
        "Statements that are waiting for a connection now.",
        ["pool"],
        {(name,): pool.waiting for name, pool in pools.items()},
    )
    yield counter(
        "pool_waits",
        "Statements that waited because all connections were in use.",
        ["pool"],
        {(name,): pool.waits for name, pool in pools.items()},
    )
    yield counter(
        "pool_timeouts",
        "Deadlines missed while waiting for a connection (wait) or for an answer of PostgreSQL (statement).",
        ["pool", "kind"],
        {
            (name, kind): count
            for name, pool in pools.items()
            for kind, count in (("wait", pool.wait_timeouts), ("statement", pool.statement_timeouts))
        },
    )
