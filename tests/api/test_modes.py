"""Batch, input, completion and the list of runs over HTTP, with scripted services."""

import attrs

from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import Prompt

RUN = "/session/my-session/runs/r1"


async def test_a_prompt_is_answered_once(server, client):
    await client.put(RUN, json={"code": "input()"})
    run = server.runs.runs["r1"]
    run.status = attrs.evolve(
        run.status, state=RunState.WAITING_INPUT, prompt=Prompt(offset=7, is_password=True)
    )
    assert (await client.get(RUN)).json()["prompt"] == {"offset": 7, "is_password": True}
    answers = [await client.post(RUN + "/input", json={"text": text, "offset": 7}) for text in "xxy"]
    assert [answer.status_code for answer in answers] == [200, 200, 409]
    assert server.runs.answers == [(7, "x")]


async def test_the_list_is_newest_first_and_bounded(client):
    for name in ("a", "b", "c"):
        await client.put(f"/session/my-session/runs/{name}", json={"mode": "batch", "exec": "true"})
    listed = (await client.get("/session/my-session/runs?limit=2")).json()["runs"]
    assert [run["run_id"] for run in listed] == ["c", "b"]


async def test_completion_finds_the_cursor(client):
    body = {"code": "a\nprint", "options": {"row": 1, "col": 3, "line": "print", "post": "nt"}}
    reply = await client.post("/session/my-session/complete", json=body)
    assert reply.json() == {"result": {"status": "finished", "completions": ["a\npri()"]}}
