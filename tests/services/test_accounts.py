import trio

from backendai_mgr.services.accounts import CAPACITY, TRUST_WITHOUT_NOTIFICATIONS, KeyCache

from ..fakes.store import FakeStore
from .conftest import CALLER


async def test_a_key_is_read_once_while_notifications_are_heard(world, autojump_clock):
    world.keys.notified = True
    first = await world.keys.credential(CALLER.access_key)
    await trio.sleep(3600)
    assert await world.keys.credential(CALLER.access_key) is first
    assert world.store.credential_reads == 1


async def test_unknown_keys_are_remembered_too(world):
    world.keys.notified = True
    assert await world.keys.credential("nobody") is None
    assert await world.keys.credential("nobody") is None
    assert world.store.credential_reads == 1


async def test_without_notifications_a_key_is_trusted_for_seconds_only(world, autojump_clock):
    await world.keys.credential(CALLER.access_key)
    await trio.sleep(TRUST_WITHOUT_NOTIFICATIONS - 0.1)
    await world.keys.credential(CALLER.access_key)
    assert world.store.credential_reads == 1
    await trio.sleep(0.2)
    await world.keys.credential(CALLER.access_key)
    assert world.store.credential_reads == 2


async def test_a_changed_key_is_read_again(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "scheduler")
        world.keys.notified = True
        await world.keys.credential(CALLER.access_key)
        del world.store.credentials[CALLER.access_key]
        world.store.notify("keys")
        await trio.testing.wait_all_tasks_blocked()
        assert await world.keys.credential(CALLER.access_key) is None
        nursery.cancel_scope.cancel()


async def test_what_was_read_before_a_change_is_not_kept():
    """The key changes while it is being read: the old row must not enter the cache."""
    store = FakeStore()
    keys = KeyCache(store)
    keys.notified = True
    answers = ["old", "new"]

    async def credential(access_key):
        if len(answers) == 2:
            keys.drop_all()
        return answers.pop(0)

    store.credential = credential
    assert await keys.credential("K") == "old"
    assert await keys.credential("K") == "new"


async def test_refused_keys_never_reach_the_database(world):
    keys = KeyCache(world.store, refused=[CALLER.access_key])
    assert await keys.credential(CALLER.access_key) is None
    assert world.store.credential_reads == 0


async def test_the_cache_is_bounded(world):
    world.keys.notified = True
    for n in range(CAPACITY + 10):
        await world.keys.credential(f"guess-{n}")
    assert len(world.keys._entries) == CAPACITY
