"""A run's output as server-sent events, from any offset and again after a drop."""

import json

import pytest
import trio

from backendai_mgr.api import run_events
from backendai_mgr.domain.errors import Unavailable
from backendai_mgr.domain.status import RunState

RUN = "/session/my-session/runs/r1"
OUTPUT = RUN + "/output"
EVENTS = {"Accept": "text/event-stream"}


async def start(server, client):
    assert (await client.put(RUN, json={"code": "x"})).status_code == 201
    return server.runs.runs["r1"]


async def events(reply):
    """The events of a stream as (name, id, value); comments are passed over."""
    fields = {}
    async for line in reply.aiter_lines():
        name, colon, value = line.partition(": ")
        if colon and name:
            fields[name] = value
        elif not line and "data" in fields:
            yield fields.get("event"), fields.get("id"), json.loads(fields["data"])
            fields = {}


@pytest.mark.parametrize("version", [1, 2])
async def test_output_comes_as_it_is_written_and_then_the_end(server, version):
    async with server.client(http1=version == 1, http2=version == 2) as client:
        run = await start(server, client)
        run.write(b"hello ")
        with trio.fail_after(10):
            async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
                assert reply.status_code == 200
                assert reply.headers["content-type"].startswith("text/event-stream")
                assert reply.headers["cache-control"] == "no-store"
                coming = events(reply)
                name, offset, value = await anext(coming)
                assert (name, offset, value["next_offset"]) == (None, "6", 6)
                assert value["records"][0]["data"] == "hello "
                run.write(b"world", "stderr")
                run.end(RunState.FINISHED, 3)
                rest = [event async for event in coming]
    assert rest[0][1:] == ("11", {"records": [rest[0][2]["records"][0]], "next_offset": 11})
    assert rest[0][2]["records"][0]["stream"] == "stderr"
    assert rest[-1] == (
        "end",
        "11-end",
        {"finished": True, "state": "finished", "exit_code": 3, "reason": ""},
    )


@pytest.mark.parametrize(
    ("query", "headers", "seen"),
    [("", {}, "hello"), ("?offset=2", {}, "llo"), ("?offset=1", {"Last-Event-ID": "3"}, "lo")],
)
async def test_from_any_offset(server, client, query, headers, seen):
    run = await start(server, client)
    run.write(b"hello")
    run.end()
    async with client.stream("GET", OUTPUT + query, headers=EVENTS | headers) as reply:
        found = [event async for event in events(reply)]
    assert "".join(r["data"] for _, _, value in found for r in value.get("records", ())) == seen


async def test_some_streams_only(server, client):
    run = await start(server, client)
    for stream in ("stdout", "stderr", "stdout"):
        run.write(stream.encode(), stream)
    run.end()
    async with client.stream("GET", OUTPUT + "?stream=stderr", headers=EVENTS) as reply:
        found = [event async for event in events(reply)]
    assert [r["data"] for _, _, value in found for r in value.get("records", ())] == ["stderr"]
    assert found[-1][:2] == ("end", "18-end")


async def test_who_comes_back_after_the_end_is_told_to_stop(server, client):
    run = await start(server, client)
    run.write(b"hello")
    run.end()
    async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
        *_, (name, last, _) = [event async for event in events(reply)]
    assert name == "end"
    reply = await client.get(OUTPUT, headers=EVENTS | {"Last-Event-ID": last})
    assert (reply.status_code, reply.content) == (204, b"")


async def test_who_dropped_before_the_last_event_is_told_of_the_end(server, client):
    run = await start(server, client)
    run.write(b"hello")
    run.end(RunState.FINISHED, 3)
    async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
        (_, last, _), *_ = [event async for event in events(reply)]
    assert last == "5"
    with trio.fail_after(10):
        async with client.stream("GET", OUTPUT, headers=EVENTS | {"Last-Event-ID": last}) as reply:
            ((name, _, value),) = [event async for event in events(reply)]
    assert (name, value["exit_code"]) == ("end", 3)


@pytest.mark.parametrize("offset", ["-1", "x", "", "1.5", "9" * 30, "6", "6-end", "-end", "5-end-end"])
async def test_a_wrong_place_to_go_on_is_named(server, client, offset):
    run = await start(server, client)
    run.write(b"hello")
    run.end()
    reply = await client.get(OUTPUT, headers=EVENTS | {"Last-Event-ID": offset})
    assert (reply.status_code, reply.json()["type"].rpartition("/")[2]) == (400, "invalid-api-params")
    assert reply.json()["data"].keys() <= {"Last-Event-ID", "offset"}


async def test_a_character_in_two_parts_is_put_together(server, client):
    run = await start(server, client)
    with trio.fail_after(10):
        async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
            coming = events(reply)
            run.write("aß".encode()[:2])
            _, offset, value = await anext(coming)
            assert (offset, value["records"][0]["data"]) == ("1", "a")
            run.write("aß".encode()[2:])
            _, offset, value = await anext(coming)
            assert (offset, value["records"][0]["data"]) == ("3", "ß")
            run.end()
            assert [name async for name, _, _ in coming] == ["end"]


async def test_a_quiet_stream_shows_that_it_lives(server, client, monkeypatch):
    monkeypatch.setattr(run_events, "QUIET_SECONDS", 0.05)
    run = await start(server, client)
    with trio.fail_after(10):
        async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
            quiet = 0
            async for line in reply.aiter_lines():
                quiet += line == ":"
                if quiet == 2:
                    run.end()
    assert quiet >= 2


async def test_a_failure_on_the_way_is_told(server, client):
    run = await start(server, client)
    with trio.fail_after(10):
        async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
            await run.until(lambda: run.readers == 1)
            server.runs.refusal = Unavailable("The agent is gone.")
            run.write(b"x")
            found = [event async for event in events(reply)]
    assert found[-1][0] == "error"
    assert found[-1][2]["msg"] == "The agent is gone."


async def test_a_stopping_server_ends_streams_between_events(server, client):
    run = await start(server, client)
    run.write(b"before")
    with trio.fail_after(10):
        async with client.stream("GET", OUTPUT, headers=EVENTS) as reply:
            coming = events(reply)
            assert (await anext(coming))[1] == "6"
            server.health.stopping.set()
            assert [event async for event in coming] == []
    assert run.interrupts == 0


async def test_a_client_that_drops_is_forgotten(server, client):
    run = await start(server, client)
    with trio.fail_after(10):
        async with client.stream("GET", OUTPUT, headers=EVENTS):
            await run.until(lambda: run.readers == 1)
        await run.until(lambda: run.readers == 0)


async def test_json_is_what_others_get(server, client):
    run = await start(server, client)
    run.write(b"x")
    for accept in ("*/*", "application/json", "text/event-stream;q=0.5, application/json"):
        reply = await client.get(OUTPUT, headers={"Accept": accept})
        assert reply.json()["next_offset"] == 1
