"""`run`, `ps`, `rm` and `why` against a running system."""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .harness import COMMAND, Installation, Up

pytestmark = pytest.mark.system


def test_code_goes_in_and_its_output_comes_out(shared_up: Up) -> None:
    done = shared_up.command("run", "print(6 * 7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("pass", 0),
        ("1 / 0", 1),
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit('words')", 1),
        ("raise SystemExit", 0),
    ],
)
def test_the_exit_code_is_the_codes_own(shared_up: Up, code: str, exit_code: int) -> None:
    assert shared_up.command("run", code).returncode == exit_code


def test_the_two_streams_stay_apart(shared_up: Up) -> None:
    done = shared_up.command("run", "import sys; print('out'); print('err', file=sys.stderr)")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_code_is_read_from_standard_input_and_from_a_file(shared_up: Up, tmp_path: Path) -> None:
    assert shared_up.command("run", "-", stdin="print('from stdin')").stdout == "from stdin\n"
    assert shared_up.command("run", stdin="print('without a dash')").stdout == "without a dash\n"
    path = tmp_path / "program.py"
    path.write_text("print('from a file')\n")
    assert shared_up.command("run", "-f", str(path)).stdout == "from a file\n"


def test_output_comes_while_the_code_still_runs(shared_up: Up) -> None:
    code = "import time\nprint('first', flush=True)\ntime.sleep(60)"
    with shared_up.popen("run", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], COMMAND)
        assert ready, "nothing came"
        assert process.stdout.readline() == "first\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(COMMAND) == 130


def test_every_byte_comes_through(shared_up: Up) -> None:
    code = (
        "import sys\nfor n in range(20000): print(n, 'é' * (n % 40))\n"
        "sys.stdout.flush(); _ = sys.stdout.buffer.write(bytes(range(256)))"
    )
    process = shared_up.popen("run", code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        received = process.stdout.buffer.read()
    expected = "".join(f"{n} {'é' * (n % 40)}\n" for n in range(20000)).encode() + bytes(range(256))
    assert received == expected


def test_ctrl_c_interrupts_the_code_and_shows_its_tail(shared_up: Up) -> None:
    code = (
        "import time\n"
        "try:\n    print('waiting', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('tail'); raise SystemExit(5)"
    )
    with shared_up.popen("run", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.stdout.read() == "tail\n"
        assert process.wait(COMMAND) == 5


def test_a_second_ctrl_c_leaves(shared_up: Up) -> None:
    code = (
        "import time\nprint('stubborn', flush=True)\n"
        "while True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: print('no', flush=True)"
    )
    with shared_up.popen("run", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stubborn\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "no\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(COMMAND) == 130


def test_a_time_limit_interrupts_the_code(shared_up: Up) -> None:
    began = time.monotonic()
    done = shared_up.command("run", "--timeout", "1", "import time; print('begun'); time.sleep(60)")
    assert done.returncode == 130
    assert done.stdout == "begun\n"
    assert "longer than --timeout allows" in done.stderr
    assert time.monotonic() - began < 30


def test_a_reader_that_goes_away_is_no_traceback(shared_up: Up) -> None:
    code = "import time\nfor n in range(10**6): print('x' * 100)"
    with shared_up.popen("run", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(COMMAND) == 141
        assert process.stderr.read() == ""


def names(up: Up, *options: str) -> list[str]:
    done = up.command("ps", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["name"] for line in done.stdout.splitlines()]


def test_a_session_of_its_own_is_gone_afterwards(shared_up: Up) -> None:
    before = names(shared_up)
    shared_up.command("run", "pass")
    assert names(shared_up) == before


def test_a_named_session_keeps_its_state_until_it_is_removed(shared_up: Up) -> None:
    assert shared_up.command("run", "--session", "kept-1", "--keep", "x = 41").returncode == 0
    assert "kept-1" in names(shared_up)
    assert shared_up.command("run", "--session", "kept-1", "print(x + 1)").stdout == "42\n"
    assert "kept-1" in names(shared_up), "a session that was there already is not removed"
    table = shared_up.command("ps").stdout
    assert "kept-1" in table
    assert "RUNNING" in table
    assert shared_up.command("why", "kept-1").stdout == "kept-1 is RUNNING. It is running.\n"
    done = shared_up.command("rm", "kept-1")
    assert (done.returncode, done.stdout) == (0, "kept-1\n")
    assert "kept-1" not in names(shared_up)
    assert "kept-1" in names(shared_up, "--all")
    assert "kept-1 is TERMINATED." in shared_up.command("why", "kept-1").stdout


def test_removing_what_is_not_there_is_told_and_the_rest_is_removed(shared_up: Up) -> None:
    shared_up.command("run", "--session", "kept-2", "--keep", "pass")
    done = shared_up.command("rm", "kept-none", "kept-2")
    assert done.returncode == 1
    assert done.stdout == "kept-2\n"
    assert done.stderr.startswith("Error: kept-none: No such session")
    assert "kept-2" not in names(shared_up)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--image", "no/such:image", "pass"), "Error: No such environment image"),
        (("--session", "x", "pass"), "name: "),
        (("--timeout", "soon", "pass"), "expected a duration"),
        (("-f", "/no/such/file"), "does not exist"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    shared_up: Up, arguments: tuple[str, ...], sentence: str
) -> None:
    done = shared_up.command("run", *arguments)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_can_name_the_manager(shared_up: Up, installation: Installation) -> None:
    said = shared_up.said
    environ = {
        "BACKEND_ENDPOINT": said["endpoint"],
        "BACKEND_ACCESS_KEY": said["access_key"],
        "BACKEND_SECRET_KEY": said["secret_key"],
    }
    assert installation.command("run", "print('there')", environ=environ).stdout == "there\n"
    wrong = {**environ, "BACKEND_SECRET_KEY": "wrong"}
    done = installation.command("run", "pass", environ=wrong)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Credential/signature mismatch")


def test_no_manager_is_told_with_what_to_do(installation: Installation, tmp_path: Path) -> None:
    done = installation.command("run", "--data-dir", str(tmp_path), "pass")
    assert done.returncode == 1
    assert done.stderr == (f"Error: No manager runs out of {tmp_path}; start it with `backendai-mgr up`.\n")
    environ = {
        "BACKEND_ENDPOINT": "http://127.0.0.1:9",
        "BACKEND_ACCESS_KEY": "k",
        "BACKEND_SECRET_KEY": "s",
    }
    done = installation.command("ps", environ=environ)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: No manager answers at http://127.0.0.1:9; start it with `backendai-mgr up`.\n"
    )
