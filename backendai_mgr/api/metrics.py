"""Figures: counters of the HTTP interface, and what agents report of their pools and runs.

Labels are routes, not paths, so their number is bounded. Where several workers serve one address a scrape
reaches one of them, which tells the figures of all: they share them through files (prometheus_client's
multiprocess mode). So every figure is a Counter, a Histogram, or a Gauge with a ``multiprocess_mode``;
collectors of other kinds would tell of one worker only.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ..domain.ids import AgentId
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
            "backendai_websockets_open",
            "Websockets that are open.",
            ["route"],
            registry=registry,
            multiprocess_mode="livesum",
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


#: What agents tell, and how it is called. What they count themselves is kept as it was told, in gauges, and
#: shown as the counters that it is: those whose names end in ``_total``.
_POOL = {
    "ready": ("backendai_pool_ready", "Kernels that are ready."),
    "size": ("backendai_pool_size", "Kernels that are to be ready."),
    "refill_seconds": ("backendai_pool_refill_seconds", "Time that making the latest one took."),
    "hits": ("backendai_pool_hits_total", "Starts that found a ready kernel."),
    "misses": ("backendai_pool_misses_total", "Starts that found none."),
}
_RUNS = {
    "kept": ("backendai_runs_kept", "Runs that are kept."),
    "bytes": ("backendai_run_output_bytes", "Bytes of output that are kept of them."),
    "dropped_bytes": ("backendai_run_output_dropped_bytes_total", "Bytes of output that gave way to newer."),
    "removed": ("backendai_runs_removed_total", "Runs whose time was over."),
}
_COUNTED = frozenset(name for name, _ in (*_POOL.values(), *_RUNS.values()) if name.endswith("_total"))


class AgentMetrics:
    """What agents report of the kernels that they keep ready, and of the runs that they keep.

    An agent reports to one worker at a time, whose word counts as the newest until another takes over.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauges(named: Mapping[str, tuple[str, str]], *labels: str) -> dict[str, Gauge]:
            mode: Any = "livemostrecent"
            return {
                key: Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)
                for key, (name, text) in named.items()
            }

        self._pool = gauges(_POOL, "agent", "image")
        self._runs = gauges(_RUNS, "agent")
        #: Epoch and numbers that were noted last. They change rarely, and reports are many.
        self._noted: dict[AgentId, tuple[int, Mapping[str, Any]]] = {}

    def note(self, agent_id: AgentId, epoch: int, report: Report) -> None:
        """Take over what is new in a report, or all of it when it is the first under this epoch."""
        known_epoch, known = self._noted.get(agent_id, (epoch, {}))
        if (known_epoch, known) == (epoch, report.stats):
            return
        self._noted[agent_id] = (epoch, report.stats)
        pool = report.stats.get("pool", {})
        for image in known.get("pool", {}).keys() | pool.keys():
            _set(self._pool, pool.get(image, {"ready": 0, "size": 0}), agent_id, image)
        _set(self._runs, report.stats.get("runs", {}), agent_id)


def _set(gauges: Mapping[str, Gauge], numbers: Mapping[str, float], *labels: str) -> None:
    for key, gauge in gauges.items():
        if key in numbers:
            gauge.labels(*labels).set(float(numbers[key]))


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus's text format; with what other workers share it with, if there are any."""
    if values.ValueClass._multiprocess:
        return generate_latest(_Figures(MultiProcessCollector(None)))  # type: ignore[no-untyped-call]
    return generate_latest(_Figures(registry))


class _Figures(Collector):
    """Those of a registry or of all workers, with the types that they have."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            if metric.name in _COUNTED:
                metric.name, metric.type = metric.name.removesuffix("_total"), "counter"
            yield metric
