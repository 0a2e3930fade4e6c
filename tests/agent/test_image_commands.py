"""The command lines of the images that come with the package, in kernels of those images."""

from decimal import Decimal

import attrs
import pytest
import trio

from backendai_mgr.agent.images import find_images, load_manifests, packaged_manifests
from backendai_mgr.domain.slots import parse_amount
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import RunOrder, RunSpec

from .harness import new_site, read_all, run, start, text

#: Seconds that all runs of one image may take here.
PATIENCE = 120


@attrs.frozen
class Language:
    image: str
    query: str  # writes "42"
    wrong: str  # cannot be run
    failing: str  # ends with exit code 3
    endless: str  # writes "begun" and then runs for ever
    files: dict[str, str]  # of a program in several files, which writes "42"
    broken: dict[str, str] | None = None  # replaces some of them; then it cannot be built
    beside: dict[str, str] = attrs.field(factory=dict)  # what the query includes


C_MAIN = '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); return 0; }\n'
CPP_MAIN = '#include <iostream>\nint answer();\nint main() { std::cout << answer() << "\\n"; }\n'
CPP_ENDLESS = """
#include <iostream>
int main() { std::cout << "begun" << std::endl; for (volatile int i = 0;;) i = 1; }
"""


def java(body):
    return f"public class Main {{ public static void main(String[] a) {{ {body} }} }}\n"


LANGUAGES = [
    Language(
        "c",
        query='#include <stdio.h>\n#include "answer.h"\nint main(void) { printf("%d\\n", ANSWER); }\n',
        beside={"answer.h": "#define ANSWER 42\n"},
        wrong="int main( {",
        failing="int main(void) { return 3; }",
        endless='#include <stdio.h>\nint main(void) { puts("begun"); fflush(stdout); for (;;) ; }',
        files={"main.c": C_MAIN, "answer.c": "int answer(void) { return 42; }\n"},
        broken={"answer.c": "int answer(void"},
    ),
    Language(
        "cpp",
        query='#include <iostream>\n#include "answer.h"\nint main() { std::cout << ANSWER << "\\n"; }\n',
        beside={"answer.h": "#define ANSWER 42\n"},
        wrong="int main( {",
        failing="int main() { return 3; }",
        endless=CPP_ENDLESS,
        files={"main.cpp": CPP_MAIN, "answer.cc": "int answer() { return 42; }\n"},
        broken={"answer.cc": "int answer("},
    ),
    Language(
        "java",
        query=java("System.out.println(42);"),
        wrong="class {",
        failing=java("System.exit(3);"),
        endless=java('System.out.println("begun"); for (;;) ;'),
        files={
            "Main.java": java("System.out.println(Answer.get());"),
            "Answer.java": "class Answer { static int get() { return 42; } }\n",
        },
        broken={"Answer.java": "class Answer {"},
    ),
    Language(
        "rust",
        query='fn main() { println!("{}", 6 * 7); }\n',
        wrong="fn main( {",
        failing="fn main() { std::process::exit(3); }\n",
        endless='fn main() { println!("begun"); loop { std::hint::spin_loop() } }\n',
        files={
            "main.rs": 'mod answer;\nfn main() { println!("{}", answer::get()); }\n',
            "answer.rs": "pub fn get() -> i32 { 42 }\n",
        },
        broken={"answer.rs": "pub fn get("},
    ),
    Language(
        "node",
        query="console.log(require('./answer.js').answer)",
        beside={"answer.js": "exports.answer = 42\n"},
        wrong="console.log((",
        failing="process.exit(3)",
        endless="console.log('begun'); for (;;) ;",
        files={
            "main.js": "console.log(require('./answer.js').answer)\n",
            "answer.js": "exports.answer = 42\n",
        },
    ),
    Language(
        "shell",
        query=". ./answer.sh; echo $answer",
        beside={"answer.sh": "answer=42\n"},
        wrong="if then",
        failing="exit 3",
        endless="echo begun; while :; do :; done",
        files={"main.sh": ". ./answer.sh; echo $answer\n", "answer.sh": "answer=42\n"},
    ),
]


@attrs.define
class Workshop:
    """A kernel of an image, with the least memory that the image asks for."""

    registry: object
    site: object
    spec: object
    runs: int = 0

    def put(self, files):
        for name, content in files.items():
            path = self.work / name
            path.unlink(missing_ok=True)  # a program may have been given to the kernel's account
            path.write_text(content)
            path.chmod(0o644)

    @property
    def work(self):
        return self.site.scratch(self.spec) / "work"

    def content(self):
        return {path.name: path.read_bytes() for path in self.work.iterdir() if path.is_file()}

    def _next(self):
        self.runs += 1
        return f"r{self.runs}"

    async def query(self, code):
        out, status = await run(self.registry, self.spec, self._next(), code)
        return out, status.exit_code

    async def batch(self, **steps):
        """Standard output, standard error, and the exit code."""
        body, name = RunSpec(mode="batch", **steps), self._next()
        await self.registry.start_run(self.spec.kernel_id, name, RunOrder.of(1, body))
        records, status = await read_all(self.registry, self.spec.kernel_id, name)
        return text(records), text(records, "stderr"), status.exit_code

    async def interrupted(self, code):
        """A query that is interrupted once it has begun."""
        name = self._next()
        await start(self.registry, self.spec, name, code)
        seen = b""
        while b"begun" not in seen:
            chunk = await self.registry.read_output(
                self.spec.kernel_id, name, offset=0, max_bytes=4096, wait=PATIENCE
            )
            assert not chunk.run.ended, chunk
            seen = b"".join(record.data for record in chunk.records)
        await self.registry.interrupt_run(self.spec.kernel_id, name)
        _, status = await read_all(self.registry, self.spec.kernel_id, name)
        return status


def is_offered(site, alias):
    return any(alias in image.aliases for image in site.backend.images())


async def workshop(registry, site, alias):
    image = next(image for image in site.backend.images() if alias in image.aliases)
    least = {name: parse_amount(bound["min"]) for name, bound in image.resources.items()}
    slots = {"cpu": str(least["cpu"]), "mem": str(least["mem"] + Decimal(64 << 20))}  # and shared memory
    spec = site.spec(image=image.name, slots=slots)
    await registry.create_kernel(spec)
    return Workshop(registry, site, spec)


@pytest.mark.parametrize("language", LANGUAGES, ids=[language.image for language in LANGUAGES])
async def test_queries_and_the_steps_of_a_language(language):
    with new_site() as site, trio.fail_after(PATIENCE):
        async with site.agent() as registry:
            if not is_offered(site, language.image):
                pytest.skip(f"{language.image} is not here")
            shop = await workshop(registry, site, language.image)
            await check_queries(shop, language)
            await check_steps(shop, language)


async def check_queries(shop, language):
    shop.put({**language.beside, "main": "mine", **dict.fromkeys(language.files, "mine")} | language.beside)
    before = shop.content()
    assert await shop.query(language.query) == ("42\n", 0)
    assert (await shop.query(language.wrong))[1] not in (0, None)
    assert await shop.query(language.failing) == ("", 3)
    status = await shop.interrupted(language.endless)
    assert (status.state, status.exit_code) == (RunState.CANCELLED, 130)
    # Nothing of the user's is written over, and nothing of ours is left.
    assert shop.content() == before
    assert await shop.batch(exec="ls -d /tmp/query.* 2>/dev/null") == ("", "", 2)


async def check_steps(shop, language):
    for name in ("main", *language.beside):
        (shop.work / name).unlink(missing_ok=True)
    shop.put(language.files)
    assert await shop.batch(clean="*", build="*", exec="*") == ("42\n", "", 0)
    if language.broken is not None:
        shop.put(language.broken)
        _, error, code = await shop.batch(build="*", exec="*")
        assert next(iter(language.broken)) in error
        assert code == 127
        shop.put(language.files)
    shop.put({"Makefile": "all:\n\t@echo made\n"})
    out, _, code = await shop.batch(build="*", exec="*")
    assert (out.splitlines(), code) == (["made", "42"], 0)


async def test_the_steps_of_python_use_the_image_s_own_interpreter(registry, site):
    shop = await workshop(registry, site, "python")
    code = "import sys; print(sys.version, sys.prefix)"
    shop.put({"main.py": code})
    query = await shop.query(code)
    assert query[1] == 0
    assert await shop.batch(clean="*", build="*", exec="*") == (query[0], "", 0)
    shop.put({"setup.py": "raise SystemExit(5)"})
    assert (await shop.batch(build="*", exec="*"))[2] == 127
    shop.put({"Makefile": "all:\n\t@echo made\n"})
    assert await shop.batch(build="*", exec="*") == ("made\n" + query[0], "", 0)


async def test_a_program_of_the_image_asks_for_input_in_a_batch_run(registry, site):
    shop = await workshop(registry, site, "shell")
    shop.put({"main.sh": "read name; echo hello $name\n"})
    body = RunSpec(mode="batch", exec="*")
    await registry.start_run(shop.spec.kernel_id, "asks", RunOrder.of(1, body))

    for _ in ("clean", "build", "exec"):
        chunk = await registry.poll_run(shop.spec.kernel_id, "asks", wait=PATIENCE, max_bytes=4096)
    asked = chunk.run.prompt
    await registry.answer_run(shop.spec.kernel_id, "asks", asked.offset, "you")
    records, status = await read_all(registry, shop.spec.kernel_id, "asks")
    assert (text(records), status.exit_code) == ("hello you\n", 0)


GO = """#!/bin/sh
case "$1" in
version) echo go version go1.22.3 linux/amd64;;
build) shift 2; out=$1; shift; { echo '#!/bin/sh'; sed -n 's/^print //p' "$@"; } > "$out" && chmod +x "$out";;
esac
"""


async def test_go_is_offered_where_it_is(site):
    (go,) = [manifest for manifest in load_manifests(packaged_manifests()) if manifest.name == "go"]
    assert await find_images([attrs.evolve(go, command=("/nowhere/go",))], None) == []
    fake = site.data_dir / "go"
    fake.write_text(GO)
    fake.chmod(0o755)
    (image,) = await find_images([attrs.evolve(go, command=(str(fake),))], None)
    assert image.name == "local/go:1.22"
    work = site.data_dir / "work"
    work.mkdir()

    async def line(command, given=b""):
        environ = {"PATH": f"{site.data_dir}:/usr/bin:/bin"}
        return await trio.run_process(
            ["/bin/sh", "-c", command], cwd=work, env=environ, stdin=given, capture_stdout=True, check=False
        )

    assert (await line(image.query_command, b"print echo 42")).stdout == b"42\n"
    assert (await line(image.query_command, b"print exit 3")).returncode == 3
    assert list(work.iterdir()) == []
    (work / "main.go").write_text("print echo 4\n")
    (work / "more.go").write_text("print echo 2\n")
    assert (await line(image.command_for("build", "*"))).returncode == 0
    assert (await line(image.command_for("exec", "*"))).stdout == b"4\n2\n"
