import platform
import re
from pathlib import Path

import attrs
import pytest
import trio

from backendai_mgr.agent.accounts import Account, run_as, separate_accounts
from backendai_mgr.agent.backends.process import ProcessBackend
from backendai_mgr.agent.cgroups import find_cgroups
from backendai_mgr.agent.images import (
    SELF,
    Commands,
    VersionQuery,
    find_images,
    load_manifests,
    packaged_manifests,
)
from backendai_mgr.agent.scratch import KernelStore
from backendai_mgr.runtime.config import ConfigError
from backendai_mgr.runtime.paths import socket_dir

#: One that no kernel is given.
ACCOUNT = Account(61000, 61000) if separate_accounts() else None


@pytest.fixture
def python():
    return next(found for found in load_manifests(packaged_manifests()) if found.name == "python")


async def test_the_python_image_is_reported_with_the_version_that_really_runs(python):
    (image,) = await find_images([python], ACCOUNT)
    # Its folders, not its file: in a virtual environment that is a link, which cannot be shown by itself.
    assert image.paths
    assert Path(image.interpreter) not in image.paths
    report = image.report()
    asked = await run_as(ACCOUNT, [image.interpreter, "-V"], environ={}, timeout=20)
    assert re.fullmatch(r"local/python:3\.\d+", report.name)
    assert asked.stdout.decode().startswith(f"Python {report.name.partition(':')[2]}.")
    assert report.architecture == platform.machine()
    assert report.aliases == ["python"]
    assert report.labels["ai.backend.kernelspec"] == "1"
    assert report.labels["ai.backend.features"] == "batch query uid-match user-input"
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


PYTHON = "name = 'a'\nruntime = 'python'\ninterpreters = ['@self']\n"
COMMAND = "name = 'a'\nruntime = 'command'\ncommand = ['/a']\nversion = {argv = [], pattern = '(1)'}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("runtime = 'python'\ninterpreters = ['/a']", "`name` is missing"),
        (PYTHON.replace("'a'", "'a b'"), "`name`"),
        ("name = 'a'\nruntime = 'cobol'", "`runtime`"),
        ("name = 'a'\nruntime = 'python'", "`interpreters` is missing"),
        ("name = 'a'\nruntime = 'python'\ninterpreters = []", "`interpreters` is missing or empty"),
        (PYTHON.replace("'@self'", "3"), "`interpreters[0]`"),
        (PYTHON.replace("@self", "python3"), "`interpreters`: 'python3'"),
        (PYTHON + "command = ['/a']", "`command` is not"),
        (PYTHON + "commands = {query = 'x'}", "`commands.query`"),
        (PYTHON + "labels = {x = 1}", "`labels.x`"),
        (
            PYTHON + "labels = {'ai.backend.resource.min.mem' = 'much'}",
            "`labels.ai.backend.resource.min.mem`",
        ),
        (PYTHON + "base = 'b'", "`base` is not a known key"),
        (PYTHON + "paths = ['/']", "`paths`: '/'"),
        (PYTHON + "paths = ['~']", "`paths`: '~'"),
        (PYTHON + "paths = ['/proc/1']", "`paths`: '/proc/1'"),
        (PYTHON + "paths = ['/opt/../etc']", "`paths`: '/opt/../etc'"),
        (COMMAND.replace("['/a']", "[]"), "`command` is missing or empty"),
        (COMMAND.replace("'/a'", "'@self'"), "`command`: '@self'"),
        (COMMAND.partition("version")[0], "`version` is missing"),
        (COMMAND.replace("(1)", "("), "`version.pattern`"),
        (COMMAND.replace("(1)", "1"), "`version.pattern`"),
        (COMMAND.replace("argv = [], ", ""), "`version.argv` is missing"),
        (COMMAND + "interpreters = ['/a']", "`interpreters` is not"),
        ("name = ", "TOML"),
    ],
)
def test_a_wrong_manifest_is_refused_by_file_and_key(tmp_path, text, key):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"bad\.toml.*{re.escape(key)}"):
        load_manifests(tmp_path)


@pytest.mark.parametrize("text", [PYTHON, COMMAND])
def test_the_least_that_a_manifest_says(tmp_path, text):
    (tmp_path / "good.toml").write_text(text)
    (manifest,) = load_manifests(tmp_path)
    assert manifest.name == "a"


def test_a_folder_without_manifests_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        load_manifests(tmp_path)


def test_two_manifests_with_the_same_alias_are_refused_naming_both_files(tmp_path):
    for name in ("one", "two"):
        text = PYTHON.replace("'a'", f"'image-{name}'") + "aliases = ['x']\n"
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"`aliases`.*/one\.toml and .*/two\.toml.*'x'"):
        load_manifests(tmp_path)


async def test_versions_of_one_name_may_share_an_alias_and_the_first_of_equals_is_taken(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(PYTHON + f"aliases = ['x', '{name}']\n")
    (image,) = await find_images(
        [attrs.evolve(found, interpreters=(SELF, "/usr/bin/python3")) for found in load_manifests(tmp_path)],
        ACCOUNT,
    )
    assert image.manifest.aliases == ("x", "one")


async def test_a_command_shows_its_own_file_and_the_paths_that_exist(tmp_path):
    (tmp_path / "tool").write_text("")
    (tmp_path / "lib-1").mkdir()
    (tmp_path / "one.toml").write_text(
        COMMAND.replace("/a", f"{tmp_path}/t*l") + f"paths = ['{tmp_path}/lib-*', '{tmp_path}/nowhere']\n"
    )
    asked = []

    async def probe(argv, shown):
        asked.append((argv, shown))
        return b"1"

    (image,) = await find_images(load_manifests(tmp_path), ACCOUNT, probe)
    assert image.paths == (tmp_path / "tool", tmp_path / "lib-1")
    assert asked == [([f"{tmp_path}/tool"], [*image.paths])]


async def test_a_report_says_what_the_machine_knows_better_than_a_manifest(tmp_path):
    (tmp_path / "one.toml").write_text(COMMAND.replace("/a", "/bin/sh"))

    async def probe(argv, shown):
        return b"1"

    (image,) = await find_images(load_manifests(tmp_path), ACCOUNT, probe)
    labels = image.report().labels
    assert re.fullmatch(r"[a-z][a-z0-9._-]*", labels.pop("ai.backend.base-distro"))
    assert labels == {
        "ai.backend.kernelspec": "1",
        "ai.backend.role": "COMPUTE",
        "ai.backend.runtime-type": "a",
        "ai.backend.runtime-path": "/bin/sh",
    }


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


async def test_the_example_in_the_documentation_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "perl.toml").write_text(example)
    (manifest,) = load_manifests(tmp_path)
    (image,) = await find_images([manifest], ACCOUNT)
    assert re.fullmatch(r"local/perl:5\.\d+", image.name)
    (tmp_path / "main.pl").write_text("print 6 * 7")
    for line in (image.query_command, image.command_for("build", "*"), image.command_for("exec", "*")):
        done = await trio.run_process(
            ["/bin/sh", "-c", line], cwd=tmp_path, stdin=b"print 6 * 7", capture_stdout=True
        )
        assert done.stdout == (b"" if "make" in line else b"42")
    known = {field.name for field in attrs.fields(type(manifest))} - {"interpreters"}
    assert {
        name for name in known if re.search(rf"^(\[\[?{name}\]|{name} =)", example, re.MULTILINE)
    } == known
