from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.shim.framing import BadMessage, Decoder, encode

messages = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=50)), max_size=8)


@given(messages, st.integers(1, 40))
def test_messages_survive_any_cutting(sent: list[dict[str, object]], piece: int) -> None:
    data, decoder, got = b"".join(map(encode, sent)), Decoder(), []
    for first in range(0, len(data), piece):
        got += decoder.feed(data[first : first + piece])
    assert got == sent


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 9000]
)
def test_what_is_not_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage):
        list(Decoder().feed(len(body).to_bytes(4, "big") + body))


def test_too_long_is_refused_before_it_arrives() -> None:
    with pytest.raises(BadMessage):
        list(Decoder(100).feed((101).to_bytes(4, "big")))


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    decoder = Decoder(1000)
    try:
        for message in decoder.feed(data):
            assert isinstance(message, dict)
    except BadMessage:
        pass
