"""Figures of one worker, and of several that share them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

from backendai_mgr.domain.ids import AgentId
from backendai_mgr.wire.reports import Report

from .harness import Server

#: A worker: what it is told to do comes as JSON lines, each answered with what it exposes then. The checkout
#: comes last on its path: it has the tests, while the package may be installed elsewhere.
WORKER = (
    f"import sys; sys.path.append({str(Path(__file__).parents[2])!r})"
    + """
import json
from prometheus_client import CollectorRegistry
from backendai_mgr.app.figures import share_figures
share_figures(int(sys.argv[1]))
from backendai_mgr.api.metrics import Metrics, AgentMetrics, exposition
from tests.api.test_metrics import report
registry = CollectorRegistry()
metrics, pool = Metrics(registry), AgentMetrics(registry)
for line in sys.stdin:
    for name, arguments in json.loads(line):
        if name == "request":
            metrics.request(*arguments)
        elif name == "open":
            metrics.open_socket(*arguments).__enter__()
        else:
            agent, epoch, numbers = arguments
            pool.note(agent, epoch, report(numbers))
    print(json.dumps(exposition(registry).decode()), flush=True)
"""
)

REQUEST = ["request", ["/livez", "GET", 200, 0.5]]


def report(pool: dict[str, Any]) -> Report:
    return Report(
        boot="b", seq=1, version="1", architecture="x86_64", capacity={}, occupied={}, images=[], kernels=[],
        stats={"pool": pool},
    )  # fmt: skip


def python(hits: float, ready: float = 1) -> dict[str, Any]:
    return {"python": {"size": 2, "ready": ready, "hits": hits, "misses": 0, "refill_seconds": 0.25}}


class Worker:
    """A process with the figures of worker *number* in *folder*."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def does(self, *steps: Any) -> dict[str, float]:
        """Do this, and scrape: "name{label,label}" -> value."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(steps), file=self.process.stdin, flush=True)
        text = json.loads(self.process.stdout.readline())
        return {
            f"{sample.name}{{{','.join(sample.labels.values())}}}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def dies(self) -> None:
        self.process.kill()
        self.process.communicate()
        mark_process_dead(self.number, str(self.folder))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_any_worker_tells_the_figures_of_all_the_living_and_what_the_dead_have_counted(
    tmp_path: Path,
) -> None:
    requests, sockets = "backendai_http_requests_total{GET,/livez,200}", "backendai_websockets_open{/stream}"
    with Worker(tmp_path, 1) as one, Worker(tmp_path, 2) as two:
        one.does(REQUEST, ["open", ["/stream"]])
        seen = two.does(REQUEST, REQUEST, ["open", ["/stream"]])
        assert (seen[requests], seen[sockets]) == (3, 2)
        assert seen["backendai_http_request_seconds_sum{GET,/livez}"] == 1.5
        two.dies()
        seen = one.does()
        assert (seen[requests], seen[sockets]) == (3, 1)
        with Worker(tmp_path, 2) as again:
            seen = again.does(REQUEST)
            assert (seen[requests], seen[sockets]) == (4, 1)
    assert {path.name for path in tmp_path.glob("counter_*")} == {"counter_1.db", "counter_2.db"}


def test_of_a_pool_the_newest_word_counts_whoever_has_it(tmp_path: Path) -> None:
    hits, ready = "backendai_pool_hits_total{i-1,python}", "backendai_pool_ready{i-1,python}"
    with Worker(tmp_path, 1) as one, Worker(tmp_path, 2) as two:
        seen = one.does(["note", ["i-1", 1, python(5)]])
        assert (seen[hits], seen[ready]) == (5, 1)
        seen = two.does(["note", ["i-1", 2, python(7, ready=2)]])
        assert (seen[hits], seen[ready]) == (7, 2)
        # The first has the lease again, and what it heard last is what it is told now.
        seen = one.does(["note", ["i-1", 3, python(5)]])
        assert (seen[hits], seen[ready]) == (5, 1)
        one.dies()
        assert two.does()[hits] == 7


async def test_metrics_tell_of_the_kernels_that_are_kept_ready(server: Server) -> None:
    def told(report: Report) -> None:
        for listener in server.health.listeners:
            listener(AgentId("i-1"), 1, report)

    async def lines() -> list[str]:
        async with server.client(auth=None) as anyone:
            return (await anyone.get("/metrics")).text.splitlines()

    told(report(python(5)))
    labels = '{agent="i-1",image="python"}'
    expected = {"ready": 1, "size": 2, "hits_total": 5, "misses_total": 0, "refill_seconds": 0.25}
    found = await lines()
    for name, value in expected.items():
        assert f"backendai_pool_{name}{labels} {float(value)}" in found
    assert "# TYPE backendai_pool_hits_total counter" in found
    assert "# TYPE backendai_pool_ready gauge" in found
    # An image that the agent does not have any more.
    told(report({}))
    assert f"backendai_pool_ready{labels} 0.0" in await lines()


async def test_all_figures_can_be_shared(server: Server) -> None:
    """Collectors of another kind would tell of one worker, gauges without a mode of each apart."""
    for collector in server.registry._collector_to_names:
        assert isinstance(collector, MetricWrapperBase), collector
        if collector._type == "gauge":
            assert collector._multiprocess_mode != "all", collector._name
