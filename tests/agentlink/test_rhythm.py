"""Reports keep their rhythm under a flood of output: what is before them on the way is bounded by credit."""

import trio

from backendai_mgr.agentlink.links import open_links
from backendai_mgr.wire import link as wire
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.reports import Report
from tests.fakes.agent import FakeAgent

from .conftest import AGENT, KERNEL, serving

INTERVAL = 0.02
STREAMS = 8
BLOCK = bytes(65536)
BLOCKS = 256  # of each stream


class NotingAgent(FakeAgent):
    """Notes how much output had been taken from the streams when each report was made."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.taken_at: dict[int, int] = {}

    def make_report(self) -> Report:
        report = super().make_report()
        self.taken_at[report.seq] = self.taken
        return report


async def test_no_report_waits_behind_more_output_than_there_is_credit():
    agent = NotingAgent()
    runs = [agent.add_run(KERNEL, f"r{number}") for number in range(STREAMS)]
    for run in runs:
        for _ in range(BLOCKS):
            run.write(BLOCK)
        run.finish()
    behind: list[int] = []

    async def listen(link) -> None:
        async with link.reports(1, "worker") as feed:
            async for report in feed:
                behind.append(agent.taken - agent.taken_at[report.seq])

    async def drain(link, run_id: str) -> None:
        async with link.stream(KERNEL, run_id, offset=0) as stream:
            async for item in stream:
                if isinstance(item, Record):
                    agent.taken += len(item.data)

    async with (
        serving(agent, report_interval=INTERVAL) as endpoint,
        open_links(report_interval=INTERVAL, silence=5.0) as links,
        trio.open_nursery() as nursery,
    ):
        link = links.link(AGENT, endpoint)
        nursery.start_soon(listen, link)
        with trio.fail_after(60):
            async with trio.open_nursery() as readers:
                for run in runs:
                    readers.start_soon(drain, link, run.status.run_id)
        nursery.cancel_scope.cancel()
    assert agent.taken == STREAMS * BLOCKS * len(BLOCK)
    # A report also comes after what waits here for readers that have not had their turn.
    assert max(behind) <= 2 * wire.LINK_CREDIT
    assert len(behind) > 3, "reports came while output did"
