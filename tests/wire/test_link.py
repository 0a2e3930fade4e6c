"""EVENTS and STREAM: every message there and back, only FrameError for noise, credit arithmetic."""

from contextlib import suppress
from itertools import pairwise
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.status import KernelState, RunState
from backendai_mgr.wire import link
from backendai_mgr.wire.callosum import FrameError
from backendai_mgr.wire.records import GAP, Record
from backendai_mgr.wire.reports import ImageReport, KernelExit, KernelReport, Report
from backendai_mgr.wire.rpc import RunStatus

counts = st.integers(0, 2**63)
texts = st.text(max_size=20)
runs = st.builds(
    RunStatus,
    run_id=texts,
    incarnation=counts,
    digest=texts,
    mode=texts,
    state=st.sampled_from(RunState),
    exit_code=st.none() | st.integers(-64, 255),
    reason=texts,
    end_offset=counts,
    queued_at=st.floats(0, 2e9),
    started_at=st.none() | st.floats(0, 2e9),
)
data_records = st.builds(
    Record,
    offset=counts,
    time_ns=counts,
    stream=st.sampled_from(["stdout", "stderr", "media"]),
    data=st.binary(max_size=300),
)
gap_records = st.builds(Record, offset=counts, time_ns=counts, stream=st.just(GAP), gap=st.integers(1, 2**40))
records = st.lists(data_records | gap_records, max_size=6)
kernels = st.builds(
    KernelReport,
    id=st.uuids(),
    session_id=st.uuids(),
    incarnation=counts,
    cluster_id=texts,
    state=st.sampled_from(KernelState),
    exit=st.none() | st.builds(KernelExit, reason=texts, exit_code=st.none() | st.integers(-64, 255)),
)
slots = st.dictionaries(texts, texts, max_size=3)
reports = st.builds(
    Report,
    boot=texts,
    seq=counts,
    version=texts,
    architecture=texts,
    capacity=slots,
    occupied=slots,
    images=st.lists(
        st.builds(ImageReport, name=texts, architecture=texts, digest=texts, labels=slots), max_size=2
    ),
    kernels=st.lists(kernels, max_size=3),
    missing=slots,
    stats=st.dictionaries(texts, counts | texts, max_size=3),
)
messages = st.one_of(
    st.builds(link.Subscribe, epoch=counts, owner=texts),
    st.builds(link.Ack, epoch=counts, seq=counts, ended=st.lists(st.tuples(st.uuids(), counts), max_size=3)),
    st.builds(link.Refused, epoch=counts),
    st.builds(link.Reported, report=reports),
    st.builds(link.Open, sid=counts, kernel_id=st.uuids(), run_id=texts, offset=counts, credit=counts),
    st.builds(link.Credit, sid=counts, bytes=counts),
    st.builds(link.Close, sid=counts),
    st.builds(link.Data, sid=counts, records=records, next=counts),
    st.builds(link.End, sid=counts, run=runs),
    st.builds(link.Failed, sid=counts, code=texts, message=texts),
    st.builds(link.Dial, sid=counts, kernel_id=st.uuids(), port=st.integers(1, 65535)),
    st.builds(link.Dialled, sid=counts),
    st.builds(link.Piece, sid=counts, offset=counts, data=st.binary(max_size=100)),
    st.builds(link.Taken, sid=counts, offset=counts),
    st.builds(link.Hangup, sid=counts, code=texts, message=texts),
)


@given(messages)
def test_every_message_comes_back(message):
    assert link.decode(link.encode(message)) == message


@pytest.mark.parametrize(
    ("message", "frame", "members"),
    [
        (link.Subscribe(epoch=3, owner="w"), b"EVENTS", {"op": "subscribe", "epoch": 3, "owner": "w"}),
        (
            link.Ack(epoch=3, seq=4, ended=[(UUID(int=1), 2)]),
            b"EVENTS",
            {"op": "ack", "epoch": 3, "seq": 4, "ended": [[str(UUID(int=1)), 2]]},
        ),
        (link.Refused(epoch=3), b"EVENTS", {"op": "refused", "epoch": 3}),
        (link.Credit(sid=1, bytes=9), b"STREAM", {"op": "credit", "sid": 1, "bytes": 9}),
        (
            link.Data(sid=1, records=[Record(0, 5, "stdout", b"x")], next=1),
            b"STREAM",
            {"op": "data", "sid": 1, "records": [[0, 5, "stdout", b"x", 0]], "next": 1},
        ),
        (
            link.Failed(sid=1, code="no-such-run", message="r"),
            b"STREAM",
            {"op": "error", "sid": 1, "code": "no-such-run", "message": "r"},
        ),
    ],
    ids=lambda value: getattr(value, "op", ""),
)
def test_the_wire_form_is_the_agreed_one(message, frame, members):
    first, body = link.encode(message)
    assert (first, msgpack.unpackb(body)) == (frame, members)


def test_members_of_newer_peers_are_let_through():
    body = msgpack.packb({"op": "close", "sid": 1, "since": "version 9"})
    assert link.decode([b"STREAM", body]) == link.Close(sid=1)


@pytest.mark.parametrize(
    "members",
    [
        {},
        [],
        5,
        {"op": 5},
        {"op": ["close"]},
        {"op": "subscribe", "epoch": 1, "owner": "w"},
        {"op": "close"},
        {"op": "close", "sid": "1"},
        {"op": "credit", "sid": 1, "bytes": -1},
        {"op": "credit", "sid": 1, "bytes": 1.5},
        {"op": "open", "sid": 1, "kernel_id": "nonsense", "run_id": "r", "offset": 0, "credit": 0},
        {"op": "data", "sid": 1, "records": [[0, 0, "stdout"]], "next": 0},
        {"op": "data", "sid": 1, "records": [[-1, 0, "stdout", b"", 0]], "next": 0},
        {"op": "data", "sid": 1, "records": "abc", "next": 0},
        {"op": "data", "sid": 1, "records": [], "next": -1},
        {"op": "end", "sid": 1, "run": {"run_id": "r"}},
        {"op": "end", "sid": 1, "run": None},
    ],
    ids=str,
)
def test_wrong_members_are_refused(members):
    with pytest.raises(FrameError):
        link.decode([b"STREAM", msgpack.packb(members)])


@given(runs)
def test_a_state_that_does_not_exist_is_refused(run):
    members = msgpack.unpackb(link.encode(link.End(sid=1, run=run))[1])
    members["run"]["state"] = "dancing"
    with pytest.raises(FrameError, match="state"):
        link.decode([b"STREAM", msgpack.packb(members)])


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_noise_raises_only_the_documented_error(frames):
    for noise in (frames, [b"EVENTS", *frames], [b"STREAM", *frames]):
        with pytest.raises(FrameError):
            link.decode(noise)


@given(messages, st.data())
def test_a_damaged_message_is_a_message_or_the_documented_error(message, data):
    frame, body = link.encode(message)
    at = data.draw(st.integers(0, len(body) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=6))
    with suppress(FrameError):
        link.decode([frame, body[:at] + noise + body[at + len(noise) :]])


def payload(items: list[Record]) -> bytes:
    return b"".join(record.data for record in items)


@given(records, st.integers(0, 2000))
def test_what_is_taken_costs_at_most_the_credit_and_nothing_is_lost(items, credit):
    taken, rest = link.take(items, credit)
    assert sum(map(link.cost, taken)) <= credit
    assert payload(taken) + payload(rest) == payload(items)
    assert [r.gap for r in (*taken, *rest) if r.gap] == [r.gap for r in items if r.gap]
    if rest and rest[0] not in items:  # cut: the rest begins where the part ends
        assert taken[-1].end == rest[0].offset
    if not rest:
        assert taken == items


@given(records, st.integers(link.RECORD_COST + 1, 2000))
def test_enough_credit_for_a_record_always_makes_progress(items, credit):
    taken, _ = link.take(items, credit)
    assert bool(taken) == bool(items)


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=5)), max_size=12))
def test_merging_changes_neither_bytes_nor_their_streams(pieces):
    items, offset = [], 0
    for index, (stream, data) in enumerate(pieces):
        items.append(Record(offset, index, stream, data))
        offset += len(data)
    merged = link.merge(items)
    assert payload(merged) == payload(items)
    for stream in ("stdout", "stderr"):
        assert payload([r for r in merged if r.stream == stream]) == payload(
            [r for r in items if r.stream == stream]
        )
    assert all(a.stream != b.stream for a, b in pairwise(merged))
    assert all(a.end == b.offset for a, b in pairwise(merged))


def test_merging_stops_at_gaps_and_jumps():
    items = [
        Record(0, 1, "stdout", b"a"),
        Record(1, 2, GAP, gap=5),
        Record(6, 3, "stdout", b"b"),
        Record(7, 4, "stdout", b"c"),
        Record(20, 5, "stdout", b"d"),
    ]
    assert link.merge(items) == [*items[:2], Record(6, 3, "stdout", b"bc"), items[4]]
