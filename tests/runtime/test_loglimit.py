"""One message per key and period."""

from backendai_mgr.runtime.loglimit import LogLimit


def test_the_first_message_passes_and_the_next_one_after_the_period_tells_how_many_did_not():
    limit = LogLimit(period=60)
    assert [limit.admit("a", now) for now in (0, 1, 59.9, 60, 61)] == [0, None, None, 2, None]


def test_keys_do_not_hold_each_other_back():
    limit = LogLimit(period=60)
    assert [limit.admit(key, 0) for key in "abab"] == [0, 0, None, None]


def test_no_more_keys_are_remembered_than_allowed():
    limit = LogLimit(period=60, keys=2)
    for key in "abc":
        limit.admit(key, 0)
    assert limit.admit("c", 1) is None
    assert limit.admit("a", 1) == 0
