"""Counters of the HTTP interface. Labels are routes, not paths, so their number is bounded."""

from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
