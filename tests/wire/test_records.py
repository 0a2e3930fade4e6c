import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.wire.records import ConsoleFold, Record, from_json, to_json

streams = st.sampled_from(["stdout", "stderr", "media"])
records = st.builds(Record, st.integers(0, 2**53), st.integers(0, 2**52), streams, st.binary(max_size=50))


@given(records)
def test_pack_round_trip(record):
    assert Record.unpack(record.pack()) == record


@given(records)
def test_json_gives_every_byte_back(record):
    back = from_json(to_json(record))
    assert (back.offset, back.stream, back.data, back.gap) == (
        record.offset,
        record.stream,
        record.data,
        record.gap,
    )


def test_json_shapes():
    assert to_json(Record(3, 1_500_000_000, "stdout", "é".encode())) == {
        "offset": 3,
        "time": 1.5,
        "stream": "stdout",
        "data": "é",
    }
    assert to_json(Record(0, 0, "stderr", b"\xff"))["base64"] == base64.b64encode(b"\xff").decode()
    assert to_json(Record(7, 0, "gap", b"", 9)) == {"offset": 7, "time": 0.0, "stream": "gap", "gap": 9}


def test_end_counts_data_and_gap():
    assert Record(5, 0, "stdout", b"abc").end == 8
    assert Record(5, 0, "gap", b"", 10).end == 15


@pytest.mark.parametrize(
    "packed",
    [
        None,
        [],
        [0, 0, "stdout", b"x"],
        [0, 0, "stdout", "text", 0],
        [-1, 0, "stdout", b"", 0],
        [0, 0, "gap", b"", -1],
        {"offset": 0},
        "garbage",
    ],
)
def test_what_is_no_record_is_refused(packed):
    with pytest.raises(ValueError, match="not an output record"):
        Record.unpack(packed)


def test_console_merges_neighbours_and_keeps_the_order():
    fold = ConsoleFold()
    console = fold.fold(
        [
            Record(0, 0, "stdout", b"a"),
            Record(1, 0, "stdout", b"b"),
            Record(2, 0, "stderr", b"c"),
            Record(3, 0, "stdout", b"d"),
            Record(4, 0, "gap", b"", 6),
        ],
        final=True,
    )
    assert console[:3] == [["stdout", "ab"], ["stderr", "c"], ["stdout", "d"]]
    assert "6 bytes" in console[3][1]


@given(st.text(min_size=1), st.data())
def test_characters_that_are_split_come_out_whole(text, data):
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    fold, out = ConsoleFold(), ""
    for number, piece in enumerate(pieces):
        final = number == len(pieces) - 1
        out += "".join(content for _, content in fold.fold([Record(0, 0, "stdout", piece)], final=final))
    assert out.encode() == raw


def test_a_broken_rest_is_shown_at_the_end_only():
    fold = ConsoleFold()
    assert fold.fold([Record(0, 0, "stdout", "é".encode()[:1])]) == []
    assert fold.fold([], final=True) == [["stdout", "�"]]


def test_items_of_json_lines_show_whole_however_they_are_split():
    text = b'["image/png", "QUJD"]\n'
    fold = ConsoleFold()
    assert fold.fold([Record(0, 0, "media", text[:7])]) == []
    assert fold.fold([Record(7, 0, "media", text[7:])]) == [["media", ["image/png", "QUJD"]]]
    assert fold.fold([Record(30, 0, "html", b'"<b>x</b>"\n')]) == [["html", "<b>x</b>"]]


def test_steps_and_prompts_are_told_but_not_shown():
    fold = ConsoleFold()
    step = Record(0, 0, "step", b'{"step":"build","exit_code":2}\n')
    assert fold.fold([step]) == []
    assert (fold.step_end, fold.prompt) == ({"step": "build", "exit_code": 2}, None)
    assert fold.fold([Record(40, 0, "prompt", b'{"is_password":false}\n')]) == []
    assert (fold.step_end, fold.prompt) == (None, 40)


def test_an_item_of_which_a_part_was_lost_is_passed_over():
    records = [Record(0, 0, "html", b'"<b'), Record(3, 0, "gap", b"", 9), Record(12, 0, "html", b'>"\n"y"\n')]
    assert [item for item in ConsoleFold().fold(records) if item[0] == "html"] == [["html", "y"]]
