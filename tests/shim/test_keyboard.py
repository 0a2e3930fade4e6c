"""What is typed: nothing is lost, nothing twice, whatever is sent again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.shim.keyboard import MAX_WRITERS, Keyboard


@pytest.mark.parametrize(
    ("offset", "taken", "position"),
    [
        (None, b"defg", 7),  # a writer that does not count
        (3, b"defg", 7),
        (0, b"g", 4),  # partly known
        (1, b"fg", 5),
        (4, b"", 3),  # something before is missing
    ],
)
def test_only_what_is_new_is_taken(offset: int | None, taken: bytes, position: int) -> None:
    keyboard = Keyboard()
    assert keyboard.take("a", 0, b"abc") == b"abc"
    assert keyboard.take("a", offset, b"defg") == taken
    assert keyboard.position("a") == position


def test_writers_count_apart() -> None:
    keyboard = Keyboard()
    assert keyboard.take("a", 0, b"abc") == b"abc"
    assert keyboard.take("b", 0, b"xyz1") == b"xyz1"
    assert (keyboard.position("a"), keyboard.position("b"), keyboard.position("c")) == (3, 4, 0)


def test_the_writer_that_was_silent_longest_is_forgotten() -> None:
    keyboard = Keyboard()
    for number in range(MAX_WRITERS):
        keyboard.take(str(number), 0, b"x")
    keyboard.take("0", 1, b"x")
    keyboard.take("new", 0, b"x")
    assert (keyboard.position("0"), keyboard.position("1"), keyboard.position("2")) == (2, 0, 1)


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=50))
def test_any_repetition_types_the_text_once(text: bytes, pieces: list[tuple[int, int]]) -> None:
    keyboard = Keyboard()
    typed = b""
    for offset, size in [*pieces, (0, len(text))]:
        typed += keyboard.take("a", offset, text[offset : offset + size])
        assert keyboard.position("a") == len(typed)
    assert typed == text
