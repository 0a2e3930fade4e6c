"""Counters of the HTTP interface. Labels are routes, not paths, so their number is bounded."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..wire.reports import Report

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The interface's own metrics in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "backendai_http_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "backendai_http_request_seconds",
            "Time from a request's arrival to the end of its reply.",
            ["route", "method"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._sockets = Gauge(
            "backendai_websockets_open", "Websockets that are open.", ["route"], registry=registry
        )

    def request(self, route: str, method: str, status: int | None, seconds: float | None) -> None:
        """Count a request. Its status is None when the client left before the reply, the time that it took is
        None when that is not to be counted."""
        key = (route, method if method in METHODS else "other", "aborted" if status is None else str(status))
        children = self._children.get(key)
        if children is None:
            children = self._requests.labels(*key), self._seconds.labels(*key[:2])
            self._children[key] = children
        requests, latencies = children
        requests.inc()
        if seconds is not None:
            latencies.observe(seconds)

    def open_socket(self, route: str) -> AbstractContextManager[None]:
        """Count a websocket as open for the length of a block."""
        return self._sockets.labels(route).track_inprogress()


class PoolMetrics(Collector):
    """What agents report of the kernels that they keep ready; asked for at each scrape."""

    def __init__(self, reports: Callable[[], Mapping[str, Report]]) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        labels = ["agent", "image"]
        ready = GaugeMetricFamily("backendai_pool_ready", "Kernels that are ready.", labels=labels)
        size = GaugeMetricFamily("backendai_pool_size", "Kernels that are to be ready.", labels=labels)
        hits = CounterMetricFamily("backendai_pool_hits", "Starts that found one.", labels=labels)
        misses = CounterMetricFamily("backendai_pool_misses", "Starts that found none.", labels=labels)
        refill = GaugeMetricFamily(
            "backendai_pool_refill_seconds", "Time that making the latest one took.", labels=labels
        )
        families: dict[str, GaugeMetricFamily | CounterMetricFamily]
        families = {"ready": ready, "size": size, "hits": hits, "misses": misses, "refill_seconds": refill}
        for agent, report in self._reports().items():
            for image, numbers in report.stats.get("pool", {}).items():
                for name, family in families.items():
                    family.add_metric([agent, image], float(numbers.get(name, 0)))
        return families.values()
