import trio

from backendai_mgr.services.sessions import CreateRequest

from .conftest import CALLER


async def test_events_arrive_once_and_in_order_through_lost_connections(world, autojump_clock):
    seen = []
    world.hub.on_event(lambda event: seen.append(event.id))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.hub.run)
        for n in range(20):
            await world.sessions.create(
                CALLER, CreateRequest(name=f"session-{n}", image="python", enqueue_only=True)
            )
            if n % 7 == 3:
                world.store.disconnect()
        await world.until(lambda: len(seen) == 20)
        assert seen == list(range(1, 21))
        nursery.cancel_scope.cancel()


async def test_an_event_whose_notification_was_lost_is_found_all_the_same(world, autojump_clock):
    seen = []
    world.hub.on_event(lambda event: seen.append(event.type))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.hub.run)
        await trio.testing.wait_all_tasks_blocked()
        world.store.notify = lambda topic: None
        await world.sessions.create(CALLER, CreateRequest(name="session", image="python", enqueue_only=True))
        await world.until(lambda: seen == ["session_enqueued"], timeout=3)
        nursery.cancel_scope.cancel()


async def test_connection_changes_are_told_and_topics_count_as_notified_after_one(world, autojump_clock):
    told, keys = [], []
    world.hub.on_connection(told.append)
    world.hub.on_topic("keys", lambda: keys.append(len(told)))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.hub.run)
        assert (told, keys) == ([True], [1])
        world.store.down = True
        world.store.disconnect()
        await world.until(lambda: not world.hub.connected)
        await trio.sleep(10)
        assert told == [True, False]
        world.store.down = False
        await world.until(lambda: world.hub.connected)
        assert (told, keys) == ([True, False, True], [1, 3])
        nursery.cancel_scope.cancel()
