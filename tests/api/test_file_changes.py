"""Files over HTTP as a resource: parts, tags, conditions, changes; bodies that come no faster than wanted."""

from collections.abc import AsyncIterator

import httpx
import pytest
import trio

from backendai_mgr.api.bodies import _HELD
from backendai_mgr.api.limits import Limits

from .harness import serving, signed_headers

FILES = "/session/my-session/files"
F = f"{FILES}/f"
OTHER = '"1-2-3"'


def field_of(reply: httpx.Response, status: int) -> list[str]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    return list(reply.json()["data"])


async def tag(client) -> str:
    return (await client.head(F)).headers["etag"]


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("asked", "content", "told"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ],
)
async def test_a_range(server, client, asked, content, told):
    server.files.files["f"] = b"0123456789"
    reply = await client.get(F, headers={"Range": asked})
    assert (reply.status_code, reply.content, reply.headers["content-range"]) == (206, content, told)
    assert reply.headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,4-5", "lines=1-2", "bytes=5-2", "bytes=x-y", "", "bytes", f"bytes={'9' * 30}-"]
)
async def test_what_is_no_range_asks_for_all(server, client, asked):
    server.files.files["f"] = b"0123456789"
    reply = await client.get(F, headers={"Range": asked})
    assert (reply.status_code, reply.content) == (200, b"0123456789")


@pytest.mark.parametrize(
    ("content", "asked"), [(b"0123456789", "bytes=10-"), (b"", "bytes=0-"), (b"", "bytes=-5")]
)
async def test_a_range_of_which_nothing_is_there(server, client, content, asked):
    server.files.files["f"] = content
    reply = await client.get(F, headers={"Range": asked})
    assert (reply.status_code, reply.headers["content-range"]) == (416, f"bytes */{len(content)}")


async def test_a_range_of_the_same_file_only(server, client):
    server.files.files["f"] = b"0123456789"
    same = {"Range": "bytes=2-4", "If-Range": await tag(client)}
    assert (await client.get(F, headers=same)).content == b"234"
    assert (await client.get(F, headers=same | {"If-Range": OTHER})).content == b"0123456789"


async def test_the_query_goes_before_a_range(server, client):
    server.files.files["f"] = b"0123456789"
    reply = await client.get(f"{F}?offset=8", headers={"Range": "bytes=0-1"})
    assert (reply.status_code, reply.content) == (200, b"89")


# ---------------------------------------------------------------- conditions


async def test_what_is_known_already_is_not_sent(server, client):
    server.files.files["f"] = b"x"
    known = await tag(client)
    for header in (known, f"W/{known}", f"{OTHER}, {known}", "*"):
        reply = await client.get(F, headers={"If-None-Match": header})
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", known)
    assert (await client.get(F, headers={"If-None-Match": OTHER})).content == b"x"
    assert field_of(await client.get(F, headers={"If-Match": OTHER}), 412) == ["path"]


@pytest.mark.parametrize(
    ("method", "query"),
    [("PUT", ""), ("PUT", "?upload=u&final=true"), ("PATCH", ""), ("PATCH", "?rename=g"), ("DELETE", "")],
)
async def test_a_change_of_the_file_that_was_seen_only(server, client, method, query):
    async def change(**headers: str) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        content = b"" if "rename" in query or method == "DELETE" else b"new"
        return await client.request(method, F + query, content=content, headers=headers)

    server.files.files["f"] = b"old"
    seen = await tag(client)
    for headers in ({"If_Match": OTHER}, {"If_Match": f"W/{seen}"}, {"If_None_Match": "*"}, {"If_Match": ""}):
        assert field_of(await change(**headers), 412) == ["path"]
        assert server.files.files == {"f": b"old"}
    assert (await change(If_Match=f"{OTHER}, {seen}")).is_success
    assert server.files.files != {"f": b"old"}


async def test_a_file_that_must_be_new(server, client):
    new = {"If-None-Match": "*"}
    reply = await client.put(F, content=b"1", headers=new)
    assert (reply.status_code, reply.headers["etag"]) == (201, await tag(client))
    assert field_of(await client.put(F, content=b"2", headers=new), 412) == ["path"]
    assert field_of(await client.put(f"{FILES}/g", content=b"2", headers={"If-Match": "*"}), 412) == ["path"]
    assert server.files.files == {"f": b"1"}


# ---------------------------------------------------------------- changes


async def test_a_file_is_written_into(server, client):
    server.files.files["f"] = b"0123"
    reply = await client.patch(F, content=b"45")
    assert (reply.status_code, reply.json()) == (200, {"path": "f", "size": 6})
    assert reply.headers["etag"] == await tag(client)
    await client.patch(f"{F}?offset=1", content=b"ab")
    assert server.files.files == {"f": b"0ab345"}
    assert field_of(await client.patch(f"{F}?offset=7", content=b"x"), 409) == ["offset"]
    assert field_of(await client.patch(f"{FILES}/missing", content=b"x"), 404) == ["path"]


async def test_a_file_is_renamed(server, client):
    server.files.files = {"f": b"F", "g": b"G"}
    assert field_of(await client.patch(f"{F}?rename=g"), 409) == ["rename"]
    reply = await client.patch(f"{F}?rename=d/%C3%BC")
    assert (reply.status_code, reply.json()) == (200, {"path": "d/ü", "size": 1})
    assert (await client.patch(f"{FILES}/g?rename=d/%C3%BC&replace=true")).status_code == 200
    assert server.files.files == {"d/ü": b"G"}


@pytest.mark.parametrize(
    ("query", "content", "fields"),
    [
        ("rename=g", b"x", ["body"]),
        ("rename=g&offset=1", b"", ["offset"]),
        ("replace=true", b"x", ["replace"]),
        ("rename=", b"", ["rename"]),
        ("offset=-1", b"x", ["offset"]),
    ],
)
async def test_changes_that_do_not_go_together(server, client, query, content, fields):
    server.files.files["f"] = b"old"
    assert field_of(await client.patch(f"{F}?{query}", content=content), 400) == fields
    assert server.files.files == {"f": b"old"}


async def test_files_are_removed(server, client):
    server.files.files["f"] = b"x"
    reply = await client.delete(F)
    assert (reply.status_code, reply.content) == (204, b"")
    assert field_of(await client.delete(f"{F}?recursive=true"), 404) == ["path"]
    assert server.files.calls == [("remove", "f", False), ("remove", "f", True)]
    assert (await client.delete(f"{FILES}/")).status_code == 405


async def test_nothing_is_changed_while_the_server_stops(server, client):
    server.health.draining = True
    for method in ("PUT", "PATCH", "DELETE"):
        assert (await client.request(method, F)).status_code == 503


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("http2", [False, True])
async def test_a_body_comes_no_faster_than_it_is_taken(server, http2):
    """However much a client sends, little of it is held, and its connection does other things meanwhile."""
    async with server.client(http2=http2, http1=not http2) as client:
        await send_much(server, client)


async def send_much(server, client):
    sent = 0

    async def much() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(32):
            yield bytes(1 << 20)
            sent += 1 << 20

    server.files.gate = trio.Event()
    async with trio.open_nursery() as nursery:

        async def put() -> None:
            assert (await client.put(F, content=much())).status_code == 201

        nursery.start_soon(put)
        with trio.fail_after(30):
            before = -1
            while before != sent or not server.files.come:  # until the client can send no more
                before = sent
                await trio.sleep(0.3)
        assert server.files.come <= 4 * _HELD
        assert sent < 16 << 20
        assert (await client.get("/livez")).status_code == 200
        server.files.gate.set()
    assert len(server.files.files["f"]) == 32 << 20


@pytest.mark.parametrize("http2", [False, True])
async def test_a_large_body_that_is_refused_does_not_hang(server, http2):
    """Nobody wants it: it is dropped as it comes."""
    async with server.client(http2=http2, http1=not http2) as client:
        for target, status in ((f"{F}?dance=1", 400), ("/session/no-such-session/files/f", 404)):
            with trio.fail_after(30):
                reply = await client.put(target, content=bytes(8 << 20))
            assert reply.status_code == status
        assert (await client.put(F, content=bytes(8 << 20))).status_code == 201


async def test_a_body_that_stands_still_is_given_up():
    async with serving(Limits(body_seconds=0.3)) as server:
        target = F
        head = signed_headers("PUT", target, server.host, "application/octet-stream")
        lines = [f"PUT {target} HTTP/1.1", f"Host: {server.host}", "Content-Length: 10"]
        lines += ["Content-Type: application/octet-stream", *(f"{n}: {v}" for n, v in head.items())]
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        with trio.fail_after(30):
            await stream.send_all("\r\n".join([*lines, "", "abc"]).encode())
            reply = b""
            while b"\r\n\r\n" not in reply:
                more = await stream.receive_some()
                assert more, reply
                reply += more
        assert reply.startswith(b"HTTP/1.1 408 ")
        await stream.aclose()
        assert server.files.files == {}
