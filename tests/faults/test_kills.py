"""Manager and agent are killed in the middle of runs and of their starts: each starts once, and is whole."""

import os
import random
import signal
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import httpx
import pytest
import trio

from tests.system.harness import Up
from tests.system.http import Http
from tests.system.outputs import Output
from tests.system.processes import child
from tests.system.readers import AGAIN, TRANSPORTS, Reader, together, until
from tests.system.runs import Runs

from .support import HEALED, Site, started

pytestmark = pytest.mark.faults

#: 60,000 lines, and some seconds to be killed in.
LINES = Output(seed=23, count=60_000, longest=80, burst=600, pause=0.1)

CLIENTS = 12
IDS = 40
KILLS = 6
#: Writes its name and which of the two bodies it is.
START = "open('starts', 'a').write('{run_id} {body}\\n')"


async def kill(up: Up, *names: str) -> None:
    """SIGKILL, all at once; until others have taken their places."""
    pids = {name: child(up, name) for name in names}
    for pid in pids.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    await until(lambda: all(child(up, name) not in (None, pid) for name, pid in pids.items()), HEALED)


@pytest.mark.parametrize("victims", [["worker"], ["agent"], ["worker", "agent"]], ids="-".join)
async def test_sixty_thousand_lines_are_whole_whoever_is_killed(site: Site, victims: Sequence[str]) -> None:
    """Three times, while a reader of each transport follows; and when all of it is read again afterwards."""
    whole = len(LINES.data)
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        url = runs.start(LINES.code)
        followers = [Reader(http, url, transport) for transport in TRANSPORTS]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(together, *followers))
            for share in (0.05, 0.3, 0.55):
                await until(lambda share=share: max(each.next for each in followers) >= share * whole)
                assert all(follower.end is None for follower in followers)
                await kill(up, *victims)
        again = [Reader(http, url, transport) for transport in TRANSPORTS]
        await together(*again)
        for reader in followers + again:
            assert reader.end is not None
            assert (reader.digest, reader.end["exit_code"]) == (LINES.digest, 0), reader.transport
            assert reader.gaps == []
        if "worker" in victims:
            assert min(follower.cuts for follower in followers) > 0, "it was killed under them"
        assert runs.run("print(len(open('starts').read()))") == ("1\n", 0)


async def put(http: Http, client: httpx.AsyncClient, url: str, code: str) -> int:
    """The status of a PUT that is repeated until there is an answer to it."""
    while True:
        try:
            reply = await client.put(url, headers=http.headers("PUT", url), json={"code": code})
        except httpx.TransportError:
            await trio.sleep(AGAIN)
            continue
        if reply.status_code != 503:
            return reply.status_code
        await trio.sleep(AGAIN)


async def test_an_id_starts_once_whoever_asks_and_whoever_is_killed(site: Site) -> None:
    """Clients start the same runs at the same time, a third of them with another body."""
    answers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    ids = [f"run-{number}" for number in range(IDS)]
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "once") as runs:
        base = f"/session/{runs.session_id}/runs/"
        busy = CLIENTS

        async def ask(number: int) -> None:
            nonlocal busy
            source = random.Random(number)
            body = "other" if number % 3 == 0 else "same"
            async with httpx.AsyncClient(base_url=http.endpoint, timeout=30) as client:
                for run_id in ids:
                    await trio.sleep(source.random() * 0.1)
                    status = await put(http, client, base + run_id, START.format(run_id=run_id, body=body))
                    answers[run_id].append((body, status))
            busy -= 1

        async def ask_again(number: int) -> None:
            nonlocal busy
            busy += 1
            await ask(number)

        with trio.fail_after(4 * HEALED):
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    nursery.start_soon(ask, number)
                for number in range(KILLS):
                    await kill(up, *(["worker"], ["agent"], ["worker", "agent"])[number % 3])
                    if not busy:  # a quick machine: the kills are to meet somebody
                        nursery.start_soon(ask_again, number)
                        busy += 1
        for run_id in ids:
            assert runs.follow(base + run_id)[1] == 0
        listed = {
            run["run_id"]: run["state"] for run in http.call("GET", base[:-1] + "?limit=100").json()["runs"]
        }
        assert listed == dict.fromkeys(ids, "finished")
        starts = dict(
            line.split() for line in runs.run("print(open('starts').read())")[0].split("\n") if line
        )
        assert runs.run("print(len(open('starts').readlines()))") == (f"{IDS}\n", 0)
    for run_id in ids:
        accepted = {body for body, status in answers[run_id] if status in (200, 201)}
        assert accepted == {starts[run_id]}
        assert {status for body, status in answers[run_id] if body != starts[run_id]} <= {409}
        assert [status for _, status in answers[run_id]].count(201) <= 1
