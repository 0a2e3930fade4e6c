"""What a person sees while the manager does not answer."""

import pytest
import trio
import trio.testing

from backendai_mgr.cli.contact import Contact, show_contact
from backendai_mgr.cli.showing import OWN, Screen
from backendai_mgr.wire.records import GAP, Record

# What clears the line is written to terminals only.


async def test_a_loss_is_told_after_a_moment_and_counted_down(autojump_clock, capfd) -> None:
    contact = Contact()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show_contact, contact, "http://h", Screen())
        await trio.testing.wait_all_tasks_blocked()
        contact.lose(trio.current_time() + 60)
        await trio.sleep(0.5)
        contact.regain()
        await trio.sleep(5)
        assert capfd.readouterr() == ("", ""), "what is back at once was never missed"
        contact.lose(trio.current_time() + 60)
        await trio.sleep(2.5)
        contact.regain()
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    shown = capfd.readouterr().err
    assert shown == (
        "\r[No answer from http://h: asking again, for 59 s more]"
        "\r[No answer from http://h: asking again, for 58 s more]"
        "\r[Connected again]\n"
    )


async def test_a_status_has_a_line_of_its_own(capfd) -> None:
    screen = Screen()
    await screen.show([Record(0, 1, "stderr", b"half")])
    screen.put_status("[away]")
    await screen.show([Record(4, 1, "stderr", b" a line\n")])
    screen.put_status("[away]")
    screen.end_status("[back]")
    screen.end_status("[not shown: there is no status]")
    assert capfd.readouterr().err == "half\n\r[away]\n a line\n\r[away]\r[back]\n"


@pytest.mark.parametrize(
    ("streams", "out", "err"),
    [
        (OWN, b"\xff\x00out", b"\xfeerr[5 bytes of output were dropped here]\n"),
        (("stdout",), b"\xff\x00out", b"[5 bytes of output were dropped here]\n"),
        (None, b"\xff\x00out[image/png, 3 bytes]\n", b"\xfeerr[5 bytes of output were dropped here]\n"),
    ],
)
async def test_raw_output_is_the_program_s_own(capfdbinary, streams, out, err) -> None:
    screen = Screen(streams)
    await screen.show(
        [
            Record(0, 1, "stdout", b"\xff\x00out"),
            Record(5, 1, "stderr", b"\xfeerr"),
            Record(9, 1, "media", b'["image/png", "AAAA"]\n'),
            Record(31, 1, "prompt", b"{}\n"),
            Record(34, 1, GAP, gap=5),
        ]
    )
    assert capfdbinary.readouterr() == (out, err)
    assert screen.prompted.is_set() == (streams is None)
