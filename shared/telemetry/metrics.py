"""Metrics for Prometheus: counted in plain integers, turned into metric families when Prometheus scrapes.

Each app and each worker has its own and passes them down. The event loop's thread alone writes them, another thread may
read them. An increment of prometheus-client takes a lock, which is too slow for a compiled query.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.version import VERSION

PREFIX = "deribit_collector_"

Labels = tuple[str, ...]


class Timing:
    """A histogram of durations. `bounds` ascend, in seconds, and are inclusive."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add_since(self, began: float) -> None:
        """`began`: a reading of `time.perf_counter`."""
        seconds = time.perf_counter() - began
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)


def counter(name: str, documentation: str, labels: Sequence[str], counts: Mapping[Labels, float]) -> Metric:
    """`name` is without the prefix and without `_total`."""
    family = CounterMetricFamily(PREFIX + name, documentation, labels=labels)
    for values, count in dict(counts).items():  # a copy made in one step, because another thread may add to it
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
    """Adds up the timings of one label set; all have the same bounds."""
    family = HistogramMetricFamily(PREFIX + name, documentation, labels=labels)
    for values, several in timings:
        counted, buckets = 0, []
        for position, bound in enumerate([*map(str, several[0].bounds), "+Inf"]):
            counted += sum(timing.counts[position] for timing in several)
            buckets.append((bound, counted))
        family.add_metric(values, buckets, sum(timing.seconds for timing in several))
    return family


def build_info() -> Metric:
    return gauge("build_info", "Always 1; the label says which version runs.", ["version"], {(VERSION,): 1})


def create_registry(collector: Collector | None = None) -> CollectorRegistry:
    """Memory, CPU, files and Python of this process, and what `collector` counts."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    if collector is not None:
        registry.register(collector)
    return registry
