"""What was read a moment ago, in any pieces."""

from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.agent.window import WINDOW_BYTES, Window
from backendai_mgr.wire.records import GAP, STDOUT, Record

kinds = st.lists(st.one_of(st.binary(min_size=1, max_size=30), st.integers(1, 50)), min_size=1, max_size=20)


def records(content: list[bytes | int], offset: int = 0) -> list[Record]:
    made = []
    for number, item in enumerate(content):
        if isinstance(item, int):
            made.append(Record(offset, number, GAP, gap=item))
        else:
            made.append(Record(offset, number, STDOUT, item))
        offset = made[-1].end
    return made


def expanded(found: list[Record]) -> list[int | None]:
    """One item per offset: the byte, or None in a gap."""
    items: list[int | None] = []
    for record in found:
        items += [None] * record.gap if record.gap else list(record.data)
    return items


@given(kinds, st.integers(0, 30), st.integers(0, 900), st.integers(0, 900))
def test_a_piece_is_the_same_as_of_the_whole(content, begin, offset, size):
    window = Window()
    assert not window.reaches(begin)
    for record in records(content, begin):
        window.add([record])
    whole = expanded(records(content))
    end = begin + len(whole)
    assert window.reaches(offset) == (begin <= offset <= end)
    found = window.cut(offset, size)
    if found:
        assert found[0].offset == offset
        assert sum(len(record.data) for record in found) <= size
        assert expanded(found) == whole[offset - begin :][: len(expanded(found))]
    else:
        assert size == 0 or not begin <= offset < end


def test_the_oldest_go_and_the_newest_stay_however_large():
    window = Window()
    for number in range(10):
        window.add([Record(number * 100_000, 0, STDOUT, bytes(100_000))])
    assert window.cut(400_000, 1) == []
    assert window.cut(500_000, 10)[0].offset == 500_000
    window.add([Record(1_000_000, 0, STDOUT, bytes(2 * WINDOW_BYTES))])
    assert window.cut(999_999, 1) == []
    assert len(window.cut(1_000_000, 1 << 30)[0].data) == 2 * WINDOW_BYTES
