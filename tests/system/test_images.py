"""Runtimes other than Python, through the whole program."""

import glob
import os
import shutil
from contextlib import closing

import pytest

from .harness import Up
from .http import Http
from .runs import Runs

pytestmark = pytest.mark.system

#: Image, the program that must be there, a query that prints 42, and one that cannot be built or fails.
QUERIES = [
    ("shell", "bash", "echo $((6 * 7))", "exit 3"),
    ("node", "node", "console.log(6 * 7)", "process.exit(3)"),
    (
        "c",
        "gcc",
        '#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); }',
        "int main(void) { return 3; }",
    ),
    (
        "cpp",
        "g++",
        "#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }",
        "int main() { return 3; }",
    ),
    ("rust", "rustc", 'fn main() { println!("{}", 6 * 7); }', "fn main() { std::process::exit(3); }"),
    (
        "java",
        "javac",
        "class Main { public static void main(String[] a) { System.out.println(6 * 7); } }",
        "class Main { public static void main(String[] a) { System.exit(3); } }",
    ),
]


def is_here(program: str) -> bool:
    toolchains = os.path.expanduser("~/.rustup/toolchains/*/bin")  # as conf/images/rust.toml says
    return shutil.which(program, path=":".join(["/usr/bin", "/bin", *glob.glob(toolchains)])) is not None


@pytest.mark.parametrize(("image", "program", "answer", "failure"), QUERIES, ids=[row[0] for row in QUERIES])
def test_a_query_in_another_language(
    shared_up: Up, image: str, program: str, answer: str, failure: str
) -> None:
    if not is_here(program):
        # Where the runtime is not there, the image is not offered.
        done = shared_up.command("run", "--image", image, answer)
        assert "environment image" in done.stderr
        return
    with (
        closing(Http(shared_up.said)) as http,
        Runs.in_new_session(http, image, mem="1g", image=image) as runs,
    ):
        assert runs.run(answer) == ("42\n", 0)
        assert runs.run(failure) == ("", 3)


@pytest.mark.parametrize(("image", "program", "answer", "failure"), QUERIES, ids=[row[0] for row in QUERIES])
def test_run_gives_an_image_what_it_needs_at_least(
    shared_up: Up, image: str, program: str, answer: str, failure: str
) -> None:
    if is_here(program):
        done = shared_up.command("run", "--image", image, answer)
        assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
        assert shared_up.command("run", "--image", image, failure).returncode == 3


def test_what_a_star_means(shared_up: Up) -> None:
    with closing(Http(shared_up.said)) as http, Runs.in_new_session(http, "star", image="shell") as runs:
        runs.run("echo 'echo $((6 * 7))' > main.sh")
        assert runs.batch(exec="*") == ("42\n", 0)
        runs.run("printf 'all:\\n\\techo made > made\\n' > Makefile")
        assert runs.batch(build="*", exec="cat made")[0].endswith("made\n")


def test_an_image_that_is_nowhere(shared_up: Up) -> None:
    done = shared_up.command("run", "--image", "cobol", "1")
    assert done.returncode == 1
    assert "No such environment image" in done.stderr
