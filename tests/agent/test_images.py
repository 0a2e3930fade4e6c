import platform
import re
from pathlib import Path

import attrs
import pytest
import trio

from backendai_mgr.agent.accounts import Account, run_as, separate_accounts
from backendai_mgr.agent.backends.process import ProcessBackend
from backendai_mgr.agent.cgroups import find_cgroups
from backendai_mgr.agent.images import Commands, VersionQuery, find_images, load_manifests, packaged_manifests
from backendai_mgr.agent.scratch import KernelStore
from backendai_mgr.runtime.config import ConfigError
from backendai_mgr.runtime.paths import socket_dir

#: One that no kernel is given.
ACCOUNT = Account(61000, 61000) if separate_accounts() else None

JAVA = 'public class Main { public static void main(String[] a) { System.out.println("hi"); } }\n'


@pytest.fixture
def python():
    return next(found for found in load_manifests(packaged_manifests()) if found.name == "python")


async def test_the_python_image_is_reported_with_the_version_that_really_runs(python):
    (image,) = await find_images([python], ACCOUNT)
    report = image.report()
    asked = await run_as(ACCOUNT, [image.interpreter, "-V"], environ={}, timeout=20)
    assert re.fullmatch(r"local/python:3\.\d+", report.name)
    assert asked.stdout.decode().startswith(f"Python {report.name.partition(':')[2]}.")
    assert report.architecture == platform.machine()
    assert report.aliases == ["python"]
    assert report.labels["ai.backend.kernelspec"] == "1"
    assert report.labels["ai.backend.features"] == "batch query uid-match"
    assert report.resources == {"cpu": {"min": "1", "max": None}, "mem": {"min": "64m", "max": None}}
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", report.digest)


def test_the_digest_tells_manifests_and_interpreters_apart(python):
    other = attrs.evolve(python, labels={**python.labels, "x": "y"})
    digests = {manifest.digest(path) for manifest in (python, other) for path in ("/a", "/b")}
    assert len(digests) == 4
    reordered = attrs.evolve(python, labels=dict(reversed(python.labels.items())))
    assert reordered.digest("/a") == python.digest("/a")


async def test_the_first_interpreter_that_can_be_executed_is_taken(python, tmp_path):
    closed = tmp_path / "python3"
    closed.write_text("#!/bin/sh\necho 3.99\n")
    (plain,) = await find_images([python], ACCOUNT)
    manifest = attrs.evolve(python, interpreters=("/nowhere", str(closed), plain.interpreter))
    (image,) = await find_images([manifest], ACCOUNT)
    assert image.interpreter == plain.interpreter


@pytest.mark.parametrize("words", ["2.7", "3.5", "nonsense", ""])
async def test_what_is_no_usable_python_is_not_taken(python, site, words):
    path = site.data_dir / "python3"
    path.write_text(f"#!/bin/sh\necho {words}\n")
    path.chmod(0o755)
    site.data_dir.chmod(0o711)
    assert await find_images([attrs.evolve(python, interpreters=(str(path),))], ACCOUNT) == []


async def test_without_an_interpreter_the_image_is_not_offered_and_the_reason_is_told(python, site):
    manifest = attrs.evolve(python, interpreters=("/nowhere",))
    backend = await ProcessBackend.open(
        store=KernelStore(site.data_dir, shared_with_kernels=separate_accounts()),
        sockets=socket_dir(site.data_dir),
        manifests=[manifest],
    )
    assert backend.images() == []
    assert "account" in backend.missing()


async def test_missing_capabilities_are_told_in_sentences(site):
    site.sandboxed = False
    async with site.agent() as registry:
        missing = registry.make_report().missing
    assert {"isolation", "network"} <= set(missing)
    assert ("limits" in missing) == isinstance(find_cgroups(), str)
    assert all(sentence.endswith(".") for sentence in missing.values())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("runtime = 'python'\ninterpreters = []", "name"),
        ("name = 'a b'\nruntime = 'python'\ninterpreters = []", "name"),
        ("name = 'a'\nruntime = 'cobol'\ninterpreters = []", "runtime"),
        ("name = 'a'\nruntime = 'python'\ninterpreters = [3]", "interpreters"),
        ("name = 'a'\nruntime = 'python'\ninterpreters = []\nlabels = {x = 1}", "labels.x"),
        ("name = 'a'\nruntime = 'python'\ninterpreters = []\nbase = 'b'", "base"),
        ("name = ", "TOML"),
    ],
)
def test_a_wrong_manifest_is_refused_by_file_and_key(tmp_path, text, key):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.toml.*{re.escape(key)}"):
        load_manifests(tmp_path)


def test_a_folder_without_manifests_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        load_manifests(tmp_path)


def test_two_manifests_with_the_same_alias_are_refused_naming_both(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(
            f"name = '{name}'\nruntime = 'python'\ninterpreters = ['x']\naliases = ['x']\n"
        )
    with pytest.raises(ConfigError, match=r"one and two.*'x'"):
        load_manifests(tmp_path)


async def test_a_command_is_asked_for_its_version_through_the_probe(python):
    manifest = attrs.evolve(
        python,
        name="c",
        runtime="command",
        interpreters=(),
        command=("/usr/bin/gcc",),
        version=VersionQuery(argv=("-dumpfullversion",), pattern=r"^(\d+)"),
        commands=Commands(build="make"),
    )
    (image,) = await find_images([manifest], ACCOUNT)
    assert re.fullmatch(r"local/c:\d+", image.name)
    assert image.command_for("build", "*") == "make"
    assert image.command_for("build", "cc a.c") == "cc a.c"

    async def nothing(argv, _):
        assert argv == ["/usr/bin/gcc", "-dumpfullversion"]

    assert await find_images([manifest], ACCOUNT, nothing) == []


@pytest.mark.parametrize(
    ("name", "file", "good", "bad"),
    [
        ("c", "main.c", '#include <stdio.h>\nint main(void) { puts("hi"); return 0; }\n', "int main( {"),
        ("cpp", "main.cpp", '#include <iostream>\nint main() { std::cout << "hi\\n"; }\n', "int main( {"),
        ("node", "main.js", "console.log('hi')\n", None),
        ("java", "Main.java", JAVA, "class {"),
        ("shell", "main.sh", "echo hi\n", None),
    ],
)
async def test_the_command_lines_of_a_language_run(name, file, good, bad, tmp_path):
    manifests = [found for found in load_manifests(packaged_manifests()) if found.name == name]
    images = await find_images(manifests, ACCOUNT)
    if not images:
        pytest.skip(f"{name} is not here")
    (image,) = images

    async def run(line, given=b""):
        return await trio.run_process(
            ["/bin/sh", "-c", line],
            cwd=tmp_path,
            stdin=given,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )

    with trio.fail_after(60):
        assert (await run(image.query_command, good.encode())).stdout == b"hi\n"
        (tmp_path / file).write_text(good)
        assert (await run(image.command_for("build", "*"))).returncode == 0
        assert (await run(image.command_for("exec", "*"))).stdout == b"hi\n"
        if bad:
            failed = await run(image.query_command, bad.encode())
            assert failed.returncode != 0
            assert file.encode() in failed.stderr
        (tmp_path / "Makefile").write_text("all:\n\t@echo made\n")
        assert (await run(image.command_for("build", "*"))).stdout == b"made\n"


async def test_the_example_in_the_documentation_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "perl.toml").write_text(example)
    (manifest,) = load_manifests(tmp_path)
    (image,) = await find_images([manifest], ACCOUNT)
    assert re.fullmatch(r"local/perl:5\.\d+", image.name)
    known = {field.name for field in attrs.fields(type(manifest))} - {"interpreters"}
    assert {name for name in known if re.search(rf"^(\[{name}\]|{name} =)", example, re.MULTILINE)} == known
