"""Frames of callosum 1.0: the worked example byte for byte, round trips, only FrameError for noise."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.wire import callosum
from backendai_mgr.wire.callosum import CompressedBody, FrameError, Kind, Message

# agent-protocol §2.4: method ping with the one positional argument "hi"
REQUEST_HEADER = bytes.fromhex(
    "85 a474797065 01 a46d657468 a470696e67 a46f6b6579 a0 a3736571 00 a37a6970 c2".replace(" ", "")
)
REQUEST_BODY = bytes.fromhex(
    "82 a46d657461 c400 a4626f6479 c412 82a46172677391a26869a66b777261726773 80".replace(" ", "").replace(
        "6b777261726773", "6b7761726773"
    )
)
REPLY_HEADER = REQUEST_HEADER.replace(b"type\x01", b"type\x02")
REPLY_BODY = bytes.fromhex("82 a46d657461 c40190 a4626f6479 c403a26869".replace(" ", ""))

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
messages = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    method=st.text(max_size=40),
    seq=st.integers(0, 2**32 - 1),
    okey=st.text(max_size=10) | st.binary(max_size=10),
    body=st.none() | st.binary(),
)


def test_the_worked_example_is_read():
    request = callosum.decode([b"UPPER", REQUEST_HEADER, REQUEST_BODY])
    assert (request.kind, request.method, request.seq, request.meta) == (Kind.FUNCTION, "ping", 0, ())
    assert callosum.arguments(request) == (["hi"], {})
    reply = callosum.decode([b"UPPER", REPLY_HEADER, REPLY_BODY])
    assert reply.kind is Kind.RESULT
    assert reply.key == request.key
    assert callosum.value(reply) == "hi"


def test_the_worked_example_is_written():
    request = Message(
        kind=Kind.FUNCTION, method="ping", seq=0, body=callosum.pack({"args": ["hi"], "kwargs": {}})
    )
    assert callosum.encode(request) == [b"UPPER", REQUEST_HEADER, REQUEST_BODY]
    assert callosum.encode(callosum.result(request, "hi")) == [b"UPPER", REPLY_HEADER, REPLY_BODY]


@given(messages)
def test_every_message_comes_back(message):
    assert callosum.decode(callosum.encode(message)) == message


@given(st.text(), st.text())
def test_failures_and_errors_explain_themselves(name, text):
    request = callosum.function("m", 7, {})
    for make in (callosum.failure, callosum.error):
        reply = callosum.decode(callosum.encode(make(request, name, text)))
        assert reply.key == request.key
        assert callosum.explanation(reply) == (name, text)


def test_an_explanation_may_be_incomplete():
    reply = Message(kind=Kind.ERROR, method="m", seq=1, meta=(3,))
    assert callosum.explanation(reply) == ("3", "")


@given(st.dictionaries(st.text(), values, max_size=4))
def test_named_arguments_come_back(kwargs):
    assert callosum.arguments(callosum.function("m", 1, kwargs)) == ([], kwargs)


@given(values)
def test_values_come_back(value):
    assert callosum.value(callosum.result(callosum.function("m", 1, {}), value)) == value


def test_lone_surrogates_survive():
    assert callosum.unpack(callosum.pack("a\ud800b")) == "a\ud800b"


def test_a_sequence_number_wraps():
    assert callosum.function("m", 2**32 + 3, {}).seq == 3


def test_cancellation_repeats_the_key_and_has_no_body():
    request = callosum.function("m", 9, {"a": 1})
    for make, kind in ((callosum.cancel, Kind.CANCEL), (callosum.cancelled, Kind.CANCELLED)):
        message = callosum.decode(callosum.encode(make(request)))
        assert (message.kind, message.key, message.body, message.meta) == (kind, request.key, None, ())


def test_a_missing_body_means_no_arguments_and_no_value():
    assert callosum.arguments(Message(kind=Kind.FUNCTION, method="m", seq=1)) == ([], {})
    assert callosum.value(Message(kind=Kind.RESULT, method="m", seq=1)) is None


def test_a_compressed_body_is_refused_by_name_with_the_request_at_hand():
    header = REQUEST_HEADER[:-1] + b"\xc3"
    with pytest.raises(CompressedBody, match="zip") as caught:
        callosum.decode([b"UPPER", header, b"anything"])
    assert caught.value.request.key == ("ping", "", 0)


HEADER = {"type": 1, "meth": "m", "okey": "", "seq": 0, "zip": False}
BODY = {"meta": b"", "body": None}


@pytest.mark.parametrize(
    "change",
    [
        {"type": 7},
        {"type": -1},
        {"type": "1"},
        {"meth": b"m"},
        {"okey": 1},
        {"seq": -1},
        {"seq": 2**32},
        {"zip": 0},
    ],
    ids=str,
)
def test_a_wrong_header_is_refused(change):
    with pytest.raises(FrameError):
        callosum.decode([b"UPPER", msgpack.packb(HEADER | change), msgpack.packb(BODY)])


@pytest.mark.parametrize("missing", HEADER)
def test_an_incomplete_header_is_refused(missing):
    header = {key: value for key, value in HEADER.items() if key != missing}
    with pytest.raises(FrameError):
        callosum.decode([b"UPPER", msgpack.packb(header), msgpack.packb(BODY)])


@pytest.mark.parametrize(
    "body", [{}, {"meta": b""}, {"body": b""}, {"meta": "", "body": b""}, {"meta": b"\x01", "body": b""},
             {"meta": b"\xc1", "body": None}, {"meta": b"", "body": "text"}, [], None, 5],
    ids=str,
)  # fmt: skip
def test_a_wrong_body_is_refused(body):
    with pytest.raises(FrameError):
        callosum.decode([b"UPPER", msgpack.packb(HEADER), msgpack.packb(body)])


@pytest.mark.parametrize(
    "body", [5, [], {}, {"args": 1, "kwargs": {}}, {"args": [], "kwargs": {b"a": 1}}], ids=str
)
def test_wrong_arguments_are_refused(body):
    with pytest.raises(FrameError):
        callosum.arguments(Message(kind=Kind.FUNCTION, method="m", seq=1, body=msgpack.packb(body)))


def test_what_is_too_large_is_neither_written_nor_read():
    big = bytes(callosum.MAX_BODY)
    with pytest.raises(FrameError, match="may travel"):
        callosum.encode(Message(kind=Kind.RESULT, method="m", seq=1, body=big))
    with pytest.raises(FrameError, match="too large"):
        callosum.decode([b"UPPER", msgpack.packb(HEADER), msgpack.packb({"meta": b"", "body": big})])


@pytest.mark.parametrize("value", [object(), 2**64, {1, 2}])
def test_what_msgpack_cannot_carry_is_refused(value):
    with pytest.raises(FrameError):
        callosum.pack(value)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_noise_raises_only_the_documented_error(frames):
    for noise in (frames, [b"UPPER", *frames], [b"UPPER", REQUEST_HEADER, *frames]):
        with pytest.raises(FrameError):
            callosum.decode(noise)


@given(st.binary(min_size=1, max_size=8), st.integers(0, 60), st.booleans())
def test_a_damaged_message_is_a_message_or_the_documented_error(noise, at, in_header):
    frames = [b"UPPER", REQUEST_HEADER, REQUEST_BODY]
    index = 1 if in_header else 2
    frames[index] = frames[index][:at] + noise + frames[index][at + len(noise) :]
    with suppress(FrameError):
        callosum.arguments(callosum.decode(frames))
