"""Runs over HTTP: start once, read from anywhere, wait, interrupt; and the legacy call."""

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.api.output import Joiner
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.records import Record, from_json, to_json
from tests.fakes.services import SESSION_ID

RUN = "/session/my-session/runs/r1"


async def test_a_run_starts_once(server, client):
    created = await client.put(RUN, json={"mode": "query", "code": "1+1", "timeout": 5})
    attached = await client.put(RUN, json={"code": "1+1", "timeout": 5.0})
    assert (created.status_code, attached.status_code) == (201, 200)
    answer = created.json()
    assert answer["url"] == created.headers["location"] == f"/session/{SESSION_ID}/runs/r1"
    assert answer["session_id"] == str(SESSION_ID)
    assert (answer["state"], answer["run_id"], answer["created"]) == ("running", "r1", True)
    assert attached.json()["created"] is False
    assert len(server.runs.runs) == 1
    assert server.runs.runs["r1"].spec.timeout == 5.0


async def test_code_of_eight_mebibytes(server, client):
    code = "#" * (8 << 20)
    assert (await client.put(RUN, json={"code": code})).status_code == 201
    body = {"mode": "query", "runId": "r2", "code": code}
    assert (await client.post("/session/my-session", json=body)).status_code == 200
    reply = await client.put("/session/my-session/runs/r3", json={"code": code + "#"})
    assert (reply.status_code, list(reply.json()["data"])) == (400, ["code"])


async def test_a_run_is_deleted_when_it_has_ended(server, client):
    await client.put(RUN, json={"code": "x"})
    refused = await client.delete(RUN)
    assert (refused.status_code, "not ended" in refused.json()["msg"]) == (409, True)
    server.runs.runs["r1"].end(RunState.FINISHED, 0)
    deleted = await client.delete(RUN)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await client.get(RUN)).status_code == 404


async def test_runs_come_in_pages(client):
    for number in range(3):
        await client.put(f"/session/my-session/runs/r{number}", json={"code": "x"})
    first = (await client.get("/session/my-session/runs?limit=2")).json()
    assert [run["run_id"] for run in first["runs"]] == ["r2", "r1"]
    second = (await client.get(f"/session/my-session/runs?limit=2&after={first['next']}")).json()
    assert ([run["run_id"] for run in second["runs"]], second["next"]) == (["r0"], None)


async def test_state_and_interrupt(client):
    await client.put(RUN, json={"code": "x"})
    assert (await client.get(RUN)).json()["state"] == "running"
    interrupted = (await client.post(RUN + "/interrupt")).json()
    assert (interrupted["state"], interrupted["exit_code"]) == ("cancelled", 130)


async def test_output_from_any_offset(server, client):
    await client.put(RUN, json={"code": "x"})
    run = server.runs.runs["r1"]
    run.write(b"hello ")
    run.write(b"world", "stderr")
    reply = (await client.get(RUN + "/output?offset=4")).json()
    assert [(r["offset"], r["stream"], r["data"]) for r in reply["records"]] == [
        (4, "stdout", "o "), (6, "stderr", "world"),
    ]  # fmt: skip
    assert (reply["next_offset"], reply["finished"], reply["state"]) == (11, False, "running")
    run.end(RunState.FINISHED, 7)
    reply = (await client.get(RUN + "/output?offset=11")).json()
    assert reply == {"records": [], "next_offset": 11, "finished": True, "state": "finished", "exit_code": 7}


async def test_output_of_some_streams_waits_for_these(server, client):
    await client.put(RUN, json={"code": "x"})
    run = server.runs.runs["r1"]
    run.write(b"out")
    reply = (await client.get(RUN + "/output?stream=stderr")).json()
    assert (reply["records"], reply["next_offset"]) == ([], 3)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def write():
            run.write(b"out again")
            await trio.testing.wait_all_tasks_blocked()
            run.write(b"err", "stderr")

        reply = (await client.get(RUN + "/output?stream=stderr&wait=20")).json()
    assert [(r["offset"], r["data"]) for r in reply["records"]] == [(12, "err")]


async def test_finished_only_at_the_end_of_the_output(server, client):
    await client.put(RUN, json={"code": "x"})
    run = server.runs.runs["r1"]
    run.write(b"x" * 100)
    run.end()
    text, offset, finished = "", 0, False
    while not finished:
        reply = (await client.get(f"{RUN}/output?offset={offset}&max_bytes=33")).json()
        text += "".join(r["data"] for r in reply["records"])
        offset, finished = reply["next_offset"], reply["finished"]
    assert text == "x" * 100


async def test_characters_stay_whole_whatever_the_piece(server, client):
    await client.put(RUN, json={"code": "x"})
    run = server.runs.runs["r1"]
    expected = "aé€😀" * 5
    run.write(expected.encode())
    run.end()
    for most in (4, 5, 6, 7):
        text, offset, finished = "", 0, False
        while not finished:
            reply = (await client.get(f"{RUN}/output?offset={offset}&max_bytes={most}")).json()
            text += "".join(r["data"] for r in reply["records"])
            offset, finished = reply["next_offset"], reply["finished"]
        assert text == expected


async def test_pieces_smaller_than_a_character_still_come_to_an_end(server, client):
    await client.put(RUN, json={"code": "x"})
    run = server.runs.runs["r1"]
    run.write("😀".encode())
    run.end()
    data, offset, finished = b"", 0, False
    with trio.fail_after(10):
        while not finished:
            reply = (await client.get(f"{RUN}/output?offset={offset}&max_bytes=1&wait=1")).json()
            data += b"".join(from_json(r).data for r in reply["records"])
            offset, finished = reply["next_offset"], reply["finished"]
    assert data == "😀".encode()


async def test_half_a_character_is_waited_for(server, client):
    await client.put(RUN, json={"code": "x"})
    run = server.runs.runs["r1"]
    run.write(b"\xe2\x82")
    reply = (await client.get(RUN + "/output")).json()
    assert (reply["records"], reply["next_offset"]) == ([], 0)
    async with trio.open_nursery() as nursery:
        replies = []

        async def read():
            replies.append((await client.get(RUN + "/output?wait=20")).json())

        nursery.start_soon(read)
        async with server.client() as other:
            await other.get("/livez")
        run.write(b"\xac!")
    assert [r["data"] for r in replies[0]["records"]] == ["€!"]


async def test_a_wait_ends_with_the_run(server, client):
    await client.put(RUN, json={"code": "x"})
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            replies = []

            async def read():
                replies.append((await client.get(RUN + "/output?wait=20")).json())

            nursery.start_soon(read)
            async with server.client() as other:
                await other.get("/livez")
            server.runs.runs["r1"].end()
    assert replies[0]["finished"] is True


pieces = st.lists(
    st.tuples(
        st.sampled_from(["stdout", "stderr", "media"]),
        st.binary(max_size=6) | st.text(max_size=3).map(str.encode),
    ),
    max_size=12,
)


@given(pieces, st.data())
def test_joining_loses_nothing_and_keeps_offsets(pieces, data):
    records, offset = [], 0
    for stream, payload in pieces:
        if payload:
            records.append(Record(offset, 5, stream, payload))
            offset += len(payload)
    joiner, out = Joiner(), []
    while records:
        count = data.draw(st.integers(1, len(records)))
        out += joiner.join(records[:count])
        assert joiner.next_offset(records[count - 1].end) == (out[-1].end if out else 0)
        records = records[count:]
    out += joiner.join([], final=True)
    out = [from_json(to_json(record)) for record in out]
    assert [record.offset for record in out] == [0, *[record.end for record in out]][: len(out)]
    assert sum(len(record.data) for record in out) == offset
    for stream in ("stdout", "stderr", "media"):
        joined = b"".join(record.data for record in out if record.stream == stream)
        assert joined == b"".join(payload for name, payload in pieces if name == stream)


@given(st.text(max_size=30), st.data())
def test_text_of_one_stream_is_never_base64(text, data):
    raw, records, offset = text.encode(), [], 0
    while offset < len(raw):
        length = data.draw(st.integers(1, 5))
        records.append(Record(offset, 5, "stdout", raw[offset : offset + length]))
        offset = records[-1].end
    joiner = Joiner()
    out = [record for one in records for record in joiner.join([one])] + joiner.join([], final=True)
    assert "".join(to_json(record)["data"] for record in out) == text


# ---------------------------------------------------------------- the legacy call


async def test_query_and_continue(server, client):
    server.runs.program = lambda run: run.write(b"hi\n")
    reply = await client.post("/session/my-session", json={"mode": "query", "code": None, "runId": None})
    result = reply.json()["result"]
    assert result == result | {
        "status": "continued", "exitCode": None, "options": None, "files": [],
        "console": [["stdout", "hi\n"]],
    }  # fmt: skip
    server.runs.runs[result["runId"]].end()
    reply = await client.post(
        "/session/my-session", json={"mode": "continue", "code": "", "runId": result["runId"], "options": {}}
    )
    assert reply.json()["result"]["status"] == "finished"
    assert reply.json()["result"]["exitCode"] == 0
    assert [(mode, code) for mode, _, code in server.runs.executed] == [("query", ""), ("continue", "")]


async def test_interrupt_of_a_session_is_204(client):
    reply = await client.post("/session/my-session/interrupt")
    assert (reply.status_code, reply.content) == (204, b"")
