"""The whole agent, as a process, that joins a cluster and stays a member: killed at each step, restarted,
reached by its managers and by nobody else."""

import json
import os
import signal
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE, STDOUT
from sys import executable

import attrs
import pytest
import trio

from backendai_mgr.agentlink.keys import LinkKeys
from backendai_mgr.agentlink.links import open_links
from backendai_mgr.domain.joining import KeyPair
from backendai_mgr.runtime.curve import new_key_pair
from backendai_mgr.shim.failpoint import VARIABLE
from backendai_mgr.wire.rpc import AgentUnreachable
from tests.api.harness import serving
from tests.fakes.joining import MANAGER

from .harness import PATIENCE, shims_of, until

TOKEN = "BACKENDAI_MGR_JOIN_TOKEN"
JOINING = ["join.after_keys", "join.after_reply", "join.after_membership"]
ID = "i-member"


@pytest.fixture
async def server():
    async with serving() as running:
        yield running


@attrs.frozen
class Home:
    """An agent's data directory and address."""

    data_dir: str
    addr: str

    def popen(self, *arguments: str, **environ: str):
        command = [executable, "-m", "backendai_mgr", "agent", "--data-dir", self.data_dir, *arguments]
        return {"command": command, "env": {**os.environ, **environ}, "stderr": STDOUT, "stdout": PIPE}

    def configure(self, **settings: object) -> None:
        """Write agent.toml."""
        settings = {"id": ID, "data-dir": self.data_dir, "pool-size": 0, "report-interval": 0.2} | settings
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        text = "\n".join(["[agent]", *lines, "[logging]", 'level = "INFO"', ""])
        (Path(self.data_dir) / "etc" / "agent.toml").write_text(text)


@pytest.fixture
def home(site) -> Home:
    """An agent that listens on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (site.data_dir / "etc").mkdir()
    made = Home(str(site.data_dir), f"tcp://{address}")
    made.configure(bind=address)
    return made


def new_token(server) -> str:
    return str(server.joins.add_token(1, expires_at=datetime.now(UTC) + timedelta(hours=1)))


async def ended(home: Home, *arguments: str, **environ: str) -> tuple[int, str]:
    """Run the agent to its end: exit status and output."""
    with trio.fail_after(PATIENCE):
        options = home.popen(*arguments, **environ)
        del options["stdout"]
        done = await trio.run_process(
            options.pop("command"), check=False, **options | {"capture_stdout": True}
        )
    return done.returncode, done.stdout.decode()


@asynccontextmanager
async def running(home: Home, *arguments: str, **environ: str):
    """The agent from when it serves until it has stopped; what it told its parent."""
    read, write = os.pipe()
    options = home.popen("--ready", str(write), *arguments, **environ)
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(options.pop("command"), pass_fds=[write], **options)
        os.close(write)
        try:
            async with trio.lowlevel.FdStream(read) as ready:
                told = await ready.receive_some(4096)
            if not told:
                raise AssertionError((await process.stdout.receive_some(65536)).decode())
            yield json.loads(told)
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                assert await process.wait() == 0
            await process.stdout.aclose()


async def reports(server, home: Home, own: KeyPair = MANAGER) -> bool:
    """Whether a manager with these keys gets a report."""
    async with open_links(keys=LinkKeys(own, server.joins), report_interval=0.2, silence=5.0) as links:
        try:
            return (await links.link(ID, home.addr).report(1)).version != ""
        except AgentUnreachable:
            return False


async def test_a_member_is_reached_by_its_managers_only_and_needs_no_token_again(server, home):
    stranger = KeyPair(**dict(zip(("public", "secret"), new_key_pair(), strict=True)))
    token = new_token(server)
    async with running(home, "--join", server.url, **{TOKEN: token}) as told:
        assert told["addr"] == home.addr
        assert await reports(server, home)
        assert not await reports(server, home, stranger)
    async with running(home, "--join", server.url):
        assert await reports(server, home)
        assert not await reports(server, home, stranger)
    assert len(server.joins.requests) == 1


async def test_a_member_that_is_told_nothing_listens_where_it_did(server, home):
    async with running(home, "--join", server.url, **{TOKEN: new_token(server)}):
        pass
    home.configure()
    async with running(home) as told:
        assert told["addr"] == home.addr
        assert await reports(server, home)


async def test_a_member_whose_address_changed_needs_another_token(server, home):
    async with running(home, "--join", server.url, **{TOKEN: new_token(server)}):
        pass
    home.configure(bind="127.0.0.1:1")
    status, said = await ended(home, "--join", server.url)
    assert status == 1
    assert f"joined as {ID} at {home.addr}, and is {ID} at tcp://127.0.0.1:1 now" in said.splitlines()[-1]


@pytest.mark.parametrize("failpoint", JOINING)
async def test_an_agent_that_is_killed_while_it_joins_joins_by_the_same_command(server, home, failpoint):
    token = new_token(server)
    wishes = {TOKEN: token}
    status, said = await ended(home, "--join", server.url, **wishes, **{VARIABLE: f"{failpoint}=kill"})
    assert status == -signal.SIGKILL, said
    async with running(home, "--join", server.url, **wishes):
        assert await reports(server, home)
    assert len({(request.id, request.public_key) for request in server.joins.requests}) == 1
    (stored,) = server.joins.tokens.values()
    assert stored.uses == 0


async def test_a_token_that_is_refused_ends_the_start_in_a_sentence(server, home):
    status, said = await ended(home, "--join", server.url, "--token", "bmj-nonsense")
    assert status == 1
    assert said.splitlines()[-1].startswith(f"Error: {server.url} refuses this agent (401): ")
    assert "Traceback" not in said


async def test_an_address_on_the_network_needs_a_cluster(home):
    home.configure(bind="192.0.2.1:6001")
    status, said = await ended(home)
    assert status == 1
    assert said.splitlines()[-1].startswith("Error: `agent.bind`: 192.0.2.1:")
    assert "has joined no cluster" in said


async def test_an_agent_whose_manager_is_away_can_be_stopped(home):
    options = home.popen("--join", "http://127.0.0.1:1", "--token", "bmj-x")
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(options.pop("command"), **options)
        said = b""
        while b"does not take this agent in yet" not in said:
            said += await process.stdout.receive_some(4096)
        process.terminate()
        assert await process.wait() == 0
        await process.stdout.aclose()


async def test_no_child_of_the_agent_has_the_token_in_its_environment(server, home):
    home.configure(bind=home.addr.removeprefix("tcp://"), **{"pool-size": 1})
    token = new_token(server)

    def shims() -> list[int]:
        return shims_of(Path(home.data_dir))

    async with running(home, "--join", server.url, **{TOKEN: token}):
        await until(shims)
        environs = [await trio.Path(f"/proc/{pid}/environ").read_bytes() for pid in shims()]
        assert environs
        assert not any(token.encode() in environ for environ in environs)
