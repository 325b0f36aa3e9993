"""Numbers for Prometheus, counted in plain integers and put into its words when it asks.

Each app and each worker has its own, and hands them down. They are written by one thread, the event loop's, and may be
read by another: an increment of the library's own takes a lock, and more time than a planned answer has to spare.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.pool import Pool
from shared.version import VERSION

PREFIX = "deribit_collector_"

Labels = tuple[str, ...]


class Timing:
    """How often something took how long. `bounds` ascend, in seconds; one that is met exactly still counts."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add_since(self, began: float) -> None:
        """`began`: a time of `time.perf_counter`."""
        seconds = time.perf_counter() - began
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)


def counter(name: str, documentation: str, labels: Sequence[str], counts: Mapping[Labels, float]) -> Metric:
    """`name` is without the prefix and without `_total`."""
    family = CounterMetricFamily(PREFIX + name, documentation, labels=labels)
    for values, count in dict(counts).items():  # a copy, made in one step: another thread may add to it
        family.add_metric(values, count)
    return family


def gauge(name: str, documentation: str, labels: Sequence[str], values: Mapping[Labels, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, documentation, labels=labels)
    for names, value in values.items():
        family.add_metric(names, value)
    return family


def histogram(
    name: str, documentation: str, labels: Sequence[str], timings: Iterable[tuple[Labels, Sequence[Timing]]]
) -> Metric:
    """Timings of the same labels are added up; they have the same bounds."""
    family = HistogramMetricFamily(PREFIX + name, documentation, labels=labels)
    for values, several in timings:
        counted, buckets = 0, []
        for position, bound in enumerate([*map(str, several[0].bounds), "+Inf"]):
            counted += sum(timing.counts[position] for timing in several)
            buckets.append((bound, counted))
        family.add_metric(values, buckets, sum(timing.seconds for timing in several))
    return family


def pool_metrics(pools: Mapping[str, Pool]) -> Iterator[Metric]:
    """`pools` by what they are for."""
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
        "Connections that the pool opens at most.",
        ["pool"],
        {(name,): pool.size for name, pool in pools.items()},
    )
    yield gauge(
        "pool_waiting",
        "Statements that wait for a connection now.",
        ["pool"],
        {(name,): pool.waiting for name, pool in pools.items()},
    )
    yield counter(
        "pool_waits",
        "Statements that had to wait, for all connections were in use.",
        ["pool"],
        {(name,): pool.waits for name, pool in pools.items()},
    )
    yield counter(
        "pool_timeouts",
        "Deadlines missed: of statements that waited for a connection (wait), and of connections that were closed "
        "because PostgreSQL did not answer in time (statement).",
        ["pool", "kind"],
        {
            (name, kind): count
            for name, pool in pools.items()
            for kind, count in (("wait", pool.waits_in_vain), ("statement", pool.cut_off))
        },
    )


def build_info() -> Metric:
    return gauge("build_info", "Always 1; the label says which version runs.", ["version"], {(VERSION,): 1})


def create_registry(collector: Collector | None = None) -> CollectorRegistry:
    """What this process takes of memory, CPU and files, its Python, and what `collector` counts."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    if collector is not None:
        registry.register(collector)
    return registry
