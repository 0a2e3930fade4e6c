"""Batch runs, input and `attach` by our own command line, against a running system."""

from collections.abc import Iterator

import pytest

from .harness import COMMAND, Installation, Up, temporary_dir


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with temporary_dir() as folder, Up(Installation(), folder / "data") as up:
        yield up


def test_a_batch_run_exits_as_its_command_does(up: Up) -> None:
    done = up.command("run", "--build", "echo b > out", "--batch", "cat out; exit 3")
    assert (done.returncode, done.stdout) == (3, "b\n"), done.stderr


def test_after_a_failed_build_the_command_is_not_run(up: Up) -> None:
    done = up.command("run", "--build", "exit 9", "--batch", "echo never")
    assert (done.returncode, done.stdout) == (127, ""), done.stderr


def test_what_a_run_asks_for_comes_from_standard_input(up: Up) -> None:
    done = up.command("run", "print('hello', input()); print(input())", stdin="me\nyou\n")
    assert (done.returncode, done.stdout) == (0, "hello me\nyou\n"), done.stderr


def test_the_end_of_standard_input_is_the_end_of_the_run_s(up: Up) -> None:
    done = up.command("run", "--batch", "cat; echo end", stdin="a\nb")
    assert (done.returncode, done.stdout) == (0, "a\nb\nend\n"), done.stderr


def test_attach_follows_a_run_and_answers_it(up: Up) -> None:
    code = "print('asks', flush=True); print('hello', input()); raise SystemExit(4)"
    first = up.popen("run", "--session", "asked", "--keep", code, stdin=-1, stdout=-1)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "asks\n"
        other = up.command("attach", "asked", stdin="me\n")
        assert (other.returncode, other.stdout) == (4, "asks\nhello me\n"), other.stderr
        assert first.communicate(timeout=COMMAND)[0] == "hello me\n"
        assert first.returncode == 4
    finally:
        first.kill()
        first.wait()
    assert "runs nothing now" in up.command("attach", "asked").stderr
    up.command("rm", "asked")


def test_what_is_no_text_is_named(up: Up) -> None:
    code = "class H:\n    def _repr_html_(self): return '<b>' + 'x' * 993 + '</b>'\nH()"
    assert "[text/html, 1 kB]" in up.command("run", code).stdout
