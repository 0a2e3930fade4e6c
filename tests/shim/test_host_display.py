"""What runs show besides text."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator

import matplotlib
import pytest

from tests.shim.client import HOST
from tests.shim.host_driver import HostProcess, host, pythons


@pytest.fixture(scope="module", params=pythons())
def kernel(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with host([request.param, HOST]) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def plotting() -> Iterator[HostProcess]:
    """A kernel that has the matplotlib which the tests have, wherever that is."""
    where = os.path.dirname(os.path.dirname(matplotlib.__file__))
    with host([sys.executable, HOST], {"PYTHONPATH": where, "MPLCONFIGDIR": "/nonexistent"}) as kernel:
        kernel.run("import warnings, logging; logging.disable(); import matplotlib.pyplot as plt")
        yield kernel


def media(kind: str, data: bytes) -> tuple[str, str]:
    return "media", json.dumps([kind, base64.b64encode(data).decode()])


@pytest.mark.parametrize(
    ("methods", "shown"),
    [
        ("_repr_html_ = lambda self: '<b>\\xe9</b>'", ("html", "<b>\xe9</b>")),
        ("_repr_html_ = lambda self: ('<i>', {'meta': 1})", ("html", "<i>")),
        ("_repr_png_ = lambda self: b'PNG\\xff'", media("image/png", b"PNG\xff")),
        ("_repr_png_ = lambda self: 'UE5H\\n'", media("image/png", b"PNG")),
        ("_repr_jpeg_ = lambda self: b'JPEG'", media("image/jpeg", b"JPEG")),
        ("_repr_svg_ = lambda self: '<svg/>'", media("image/svg+xml", b"<svg/>")),
        (
            "_repr_html_ = lambda self: None; _repr_svg_ = lambda self: '<svg/>'",
            media("image/svg+xml", b"<svg/>"),
        ),
        ("_repr_png_ = lambda self: b'P'; _repr_html_ = lambda self: '<p>'", ("html", "<p>")),
    ],
)
def test_values_that_show_themselves(kernel: HostProcess, methods: str, shown: tuple[str, str]) -> None:
    result = kernel.run(f"class Rich:\n    {methods}\nrich = Rich()\nprint('first')\nrich")
    assert result == (0, "first\n", "", False)
    assert kernel.displayed() == [shown]
    assert kernel.run("_ is rich").out == "True\n"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("def _repr_html_(self): return None", ""),
        ("def _repr_html_(self): return 5", ""),
        ("def _repr_html_(self): return 1 / 0", "ZeroDivisionError: division by zero\n"),
        ("_repr_html_ = 5", "TypeError: 'int' object is not callable\n"),
        ("def __getattr__(self, name): return lambda: 'trap'", ""),
    ],
)
def test_text_is_what_remains(kernel: HostProcess, body: str, error: str) -> None:
    code, out, err, _ = kernel.run(
        f"class Plain:\n    {body}\n    def __repr__(self): return 'text'\nPlain()"
    )
    assert (code, out) == (0, "text\n")
    assert err.endswith(error)
    assert bool(err) == bool(error)
    assert "inside" not in err
    assert kernel.run("Plain").out == "<class '__main__.Plain'>\n"
    assert kernel.displayed() == []


def test_what_is_too_large_becomes_a_note(kernel: HostProcess) -> None:
    kernel.run(
        "class Large:\n    def __init__(self, size): self.size = size\n    def _repr_html_(self): return 'x' * self.size"
    )
    assert kernel.run("Large((8 << 20) + 1)").out == "[text/html is not shown: it is larger than 8 MiB]\n"
    assert kernel.displayed() == []
    assert kernel.run("Large(8 << 20)").out == ""
    assert [len(data) for _, data in kernel.displayed()] == [8 << 20]
    kernel.run("class Picture:\n    def _repr_png_(self): return bytes(7 << 20)")
    assert kernel.run("Picture()").out == "[image/png is not shown: it is larger than 8 MiB]\n"


def test_an_interrupt_cannot_cut_a_message(kernel: HostProcess) -> None:
    """The socket is full when the interrupt comes: half of the message is on its way."""
    kernel.start("class Large:\n    def _repr_html_(self): return 'x' * (4 << 20)\nLarge()")
    head = kernel.socket.recv(1)
    kernel.interrupt()
    rest = kernel._exactly(3)
    shown = json.loads(kernel._exactly(int.from_bytes(head + rest, "big")))
    assert len(shown["data"]) == 4 << 20
    assert kernel.end().interrupted
    kernel.works()


def test_children_show_text(kernel: HostProcess) -> None:
    result = kernel.run(
        "import os, sys\nclass Rich:\n    def _repr_html_(self): return '<b>'\n    def __repr__(self): return 'rich'\n"
        "pid = os.fork()\nif pid == 0:\n    sys.displayhook(Rich())\n    sys.stdout.flush()\n    os._exit(0)\n_ = os.waitpid(pid, 0)"
    )
    assert result == (0, "rich\n", "", False)
    assert kernel.displayed() == []


def test_the_displayhook_can_be_called_and_replaced(kernel: HostProcess) -> None:
    assert kernel.run("import sys\nfor value in 1, None, 'a': sys.displayhook(value)").out == "1\n'a'\n"
    code = "hook = sys.displayhook\nsys.displayhook = lambda value: print('mine:', value)\n5"
    assert kernel.run(code).out == "mine: 5\n"
    assert kernel.run("sys.displayhook = hook\n5").out == "5\n"
    err = kernel.run("class Bad:\n    def __repr__(self): raise ValueError('no text')\nBad()").err
    assert err.endswith("ValueError: no text\n")
    assert kernel.shows_our_frames or "inside" not in err


def pictures(kernel: HostProcess) -> list[str]:
    """The types of what was shown, each checked by its first bytes."""
    kinds = []
    for stream, data in kernel.displayed():
        assert stream == "media"
        kind, encoded = json.loads(data)
        assert base64.b64decode(encoded).startswith(b"\x89PNG\r\n")
        kinds.append(kind)
    return kinds


def test_figures_are_shown_by_show(plotting: HostProcess) -> None:
    plotting.start("print('before')\n_ = plt.plot([1, 2])\n_ = plt.figure()\nplt.show()\ninput('after')")
    number = plotting.prompt()
    assert pictures(plotting) == ["image/png", "image/png"]
    assert plotting.printed(0) == "before\nafter"
    plotting.send(input=number, text="")
    assert plotting.end() == (0, "''\n", "", False)
    assert plotting.displayed() == []
    assert plotting.run("plt.get_fignums()").out == "[]\n"


def test_figures_are_shown_at_the_end_of_a_run(plotting: HostProcess) -> None:
    assert plotting.run("figure, axes = plt.subplots()\n_ = axes.plot([1, 2]); 1/0").exit_code == 1
    assert pictures(plotting) == ["image/png"]
    assert plotting.run("1") == (0, "1\n", "", False)
    assert plotting.displayed() == []
    assert plotting.run("_ = plt.figure(); plt.close('all')").exit_code == 0
    assert plotting.displayed() == []


def test_a_figure_that_cannot_be_drawn_is_closed(plotting: HostProcess) -> None:
    result = plotting.run("_ = plt.figure().text(0, 0, '$\\\\nonsense$')")
    assert result.exit_code == 1
    assert "ValueError" in result.err
    assert plotting.run("plt.get_fignums()").out == "[]\n"
    assert plotting.displayed() == []


def test_a_backend_of_the_user_s_choice_stays(plotting: HostProcess) -> None:
    assert plotting.run("import os; os.environ.get('MPLBACKEND')") == (0, "", "", False)
    code = "import matplotlib; mine = matplotlib.get_backend(); plt.switch_backend('svg'); _ = plt.figure()"
    assert plotting.run(code).exit_code == 0
    assert plotting.displayed() == []
    assert plotting.run("plt.close('all'); plt.switch_backend(mine); _ = plt.figure()") == (0, "", "", False)
    assert pictures(plotting) == ["image/png"]


def test_children_draw_without_a_screen(plotting: HostProcess) -> None:
    code = "import subprocess, sys\nsubprocess.check_output([sys.executable, '-c', 'import matplotlib.pyplot as p; p.figure(); print(p.get_backend())'])"
    assert plotting.run(code).out.lower() == "b'agg\\n'\n"
