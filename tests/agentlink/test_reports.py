"""Reports: at once, on time, at each change, to the rightful subscriber, also after a restart."""

import pytest
import trio

from backendai_mgr.agentlink.links import open_links
from backendai_mgr.domain.status import KernelState
from backendai_mgr.services.ports import StaleEpoch
from tests.fakes.agent import FakeAgent

from .conftest import AGENT, INTERVAL, KERNEL, serving, spec

LONG = 30.0


async def next_report(feed):
    with trio.fail_after(10):
        return await anext(aiter(feed))


async def last_report(feed) -> None:
    """Take reports until the feed ends with an error."""
    with trio.fail_after(10):
        async for _ in feed:
            pass


async def test_subscribing_brings_a_report_at_once(links, agent):
    async with (
        serving(agent, report_interval=LONG) as endpoint,
        links.link(AGENT, endpoint).reports(1, "worker") as feed,
    ):
        assert (await next_report(feed)).boot == agent.boot


async def test_a_feed_that_is_opened_while_dialling_need_not_wait_for_an_interval(endpoint):
    async with (
        open_links(report_interval=LONG, silence=LONG) as links,
        links.link(AGENT, endpoint).reports(1, "worker") as feed,
    ):
        await next_report(feed)


async def test_reports_keep_coming_with_growing_seq(link):
    async with link.reports(1, "worker") as feed:
        seqs = [(await next_report(feed)).seq for _ in range(4)]
    assert seqs == sorted(set(seqs))


async def test_a_change_is_reported_at_once(links, agent):
    async with serving(agent, report_interval=LONG) as endpoint:
        link = links.link(AGENT, endpoint)
        async with link.reports(1, "worker") as feed:
            await next_report(feed)
            await link.create_kernel(spec())
            while not (report := await next_report(feed)).kernels:
                pass
            assert report.kernels[0].state is KernelState.RUNNING


async def test_many_changes_share_a_report(links, agent):
    async with (
        serving(agent, report_interval=LONG) as endpoint,
        links.link(AGENT, endpoint).reports(1, "worker") as feed,
    ):
        first = await next_report(feed)
        for _ in range(500):
            agent.changed()
            await trio.lowlevel.checkpoint()
        await links.link(AGENT, endpoint).list_runs(KERNEL)
        assert agent.seq - first.seq < 100


async def test_a_slow_consumer_finds_only_the_newest_report(link, agent):
    async with link.reports(1, "worker") as feed:
        await next_report(feed)
        seen = agent.seq
        await agent.until(lambda: agent.seq >= seen + 5)
        arrived = await link.report(1)  # the reports before it have arrived, too
        assert seen + 4 <= (await next_report(feed)).seq < arrived.seq


async def test_ended_kernels_are_reported_until_they_are_acknowledged(link, agent):
    await link.create_kernel(spec())
    agent.kill(KERNEL)
    async with link.reports(1, "worker") as feed:
        for _ in range(2):
            report = await next_report(feed)
            assert report.kernels[0].state is KernelState.ENDED
        await feed.ack(report, report.kernels)
        await agent.until(lambda: agent.acknowledged == [(KERNEL, 1)])
        with trio.fail_after(10):
            while (await next_report(feed)).kernels:
                pass


async def test_a_lower_epoch_is_refused(links, link):
    async with link.reports(7, "worker") as feed:
        await next_report(feed)
    async with link.reports(6, "worker") as feed:
        with pytest.raises(StaleEpoch) as refused:
            await next_report(feed)
        assert refused.value.highest == 7
        with pytest.raises(StaleEpoch):
            await next_report(feed)


async def test_a_higher_epoch_takes_the_reports_over(link, endpoint):
    async with open_links(report_interval=INTERVAL) as others, link.reports(1, "first") as feed:
        await next_report(feed)
        async with others.link(AGENT, endpoint).reports(2, "second") as successor:
            assert await next_report(successor)
            with pytest.raises(StaleEpoch):
                await last_report(feed)
            assert await next_report(successor)
            assert await next_report(successor)


async def test_a_call_with_a_higher_epoch_ends_the_feed_of_a_lower(link):
    async with link.reports(1, "worker") as feed:
        await next_report(feed)
        await link.report(2)
        with pytest.raises(StaleEpoch):
            await last_report(feed)


async def test_an_acknowledgement_under_a_lower_epoch_changes_nothing(link, agent):
    await link.create_kernel(spec())
    agent.kill(KERNEL)
    async with link.reports(1, "worker") as feed:
        report = await next_report(feed)
        await link.report(2)
        await feed.ack(report, report.kernels)
        with pytest.raises(StaleEpoch):
            await last_report(feed)
    assert agent.acknowledged == []


async def test_of_two_feeds_of_one_worker_the_later_lives(link):
    async with link.reports(1, "worker") as former, link.reports(2, "worker") as feed:
        assert await next_report(feed)
        with pytest.raises(StaleEpoch):
            await next_report(former)
        assert await next_report(feed)


async def test_the_feed_goes_on_when_the_agent_restarts_at_the_same_address(links):
    async with serving(FakeAgent()) as endpoint:
        pass
    async with links.link(AGENT, endpoint).reports(1, "worker") as feed:
        for boot in ("boot-1", "boot-2", "boot-3"):
            async with serving(FakeAgent(boot), endpoint):
                with trio.fail_after(20):
                    while (await next_report(feed)).boot != boot:
                        pass


async def test_a_feed_is_asked_for_again_as_soon_as_the_agent_is_back():
    first, second = FakeAgent("boot-1"), FakeAgent("boot-2")
    async with open_links(report_interval=LONG, silence=LONG) as links:
        async with serving(first, report_interval=LONG) as endpoint:
            pass
        async with links.link(AGENT, endpoint).reports(1, "worker") as feed:
            for agent in (first, second):
                async with serving(agent, endpoint, report_interval=LONG):
                    assert (await next_report(feed)).boot == agent.boot


async def test_a_feed_may_be_opened_before_the_agent_is_there(links):
    async with serving(FakeAgent()) as endpoint:
        pass
    async with links.link(AGENT, endpoint).reports(1, "worker") as feed, serving(FakeAgent(), endpoint):
        assert await next_report(feed)


async def test_any_frame_is_a_sign_of_life(link):
    before = trio.current_time()
    async with link.reports(1, "worker") as feed:
        await next_report(feed)
        first = link.last_heard
        await next_report(feed)
        assert before <= first < link.last_heard <= trio.current_time()
