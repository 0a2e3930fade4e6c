"""Files and logs over HTTP: ours in pieces, and the original's in forms and archives."""

import json
from datetime import UTC, datetime
from email.parser import BytesParser

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.api.legacy_files import parse_files
from backendai_mgr.api.limits import Limits
from backendai_mgr.domain.errors import Conflict, PayloadTooLarge, Refusal

from .harness import VERSION, serving

FILES = "/session/my-session/files"
SESSION = "/session/my-session"
MIB = 1 << 20
FIELD = b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\nv\r\n--b--\r\n"


def field_of(reply: httpx.Response, status: int = 400) -> list[str]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    return list(reply.json()["data"])


# ---------------------------------------------------------------- ours


async def test_a_file_is_written_and_read(server, client):
    data = bytes(range(256)) * 100
    reply = await client.put(f"{FILES}/d/ü%25 x", content=data)
    assert (reply.status_code, reply.json()) == (201, {"path": "d/ü% x", "end": len(data), "final": True})
    tag = reply.headers["etag"]
    assert (await client.put(f"{FILES}/d/ü%25 x", content=data)).status_code == 200
    reply = await client.get(f"{FILES}/d/ü%25 x")
    assert reply.content == data
    headers = ("content-type", "content-length", "x-file-size", "x-file-id", "accept-ranges", "etag")
    assert [reply.headers[name] for name in headers] == [
        "application/octet-stream", str(len(data)), str(len(data)), "7", "bytes", tag,
    ]  # fmt: skip
    assert server.files.calls[-3:] == [
        ("write_all", "d/ü% x"), ("write", "d/ü% x", True, None, 0, True), ("read", "d/ü% x", True),
    ]  # fmt: skip


async def test_an_empty_file(server, client):
    assert (await client.put(f"{FILES}/f")).json()["end"] == 0
    reply = await client.get(f"{FILES}/f")
    assert (reply.content, reply.headers["content-length"]) == (b"", "0")


async def test_a_part_of_a_file_and_its_head(server, client):
    server.files.files["f"] = b"0123456789"
    reply = await client.get(f"{FILES}/f?offset=3&length=4")
    assert (reply.content, reply.headers["x-file-size"]) == (b"3456", "10")
    reply = await client.head(f"{FILES}/f")
    assert (reply.content, reply.headers["content-length"]) == (b"", "10")
    assert (await client.get(f"{FILES}/f?length=0")).content == b""


async def test_a_folder_is_told_as_json(server, client):
    server.files.files["d/f"] = b"x"
    for path in ("/", "/d"):
        reply = await client.get(FILES + path)
        assert reply.headers["content-type"] == "application/json"
        assert [entry["filename"] for entry in reply.json()["entries"]] == ["f" if path == "/d" else "d/f"]
        assert reply.json()["cut"] is False


async def test_an_upload_in_pieces(server, client):
    for offset, data, final in ((0, b"abc", "false"), (3, b"def", "true")):
        reply = await client.put(f"{FILES}/f?upload=u.1&offset={offset}&final={final}", content=data)
        assert reply.json()["end"] == offset + 3
    assert (await client.put(f"{FILES}/g?upload=u.2", content=b"")).json()["final"] is False
    assert server.files.calls[:2] == [
        ("write", "f", True, "u.1", 0, False), ("write", "f", True, "u.1", 3, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("offset=-1", "offset"),
        ("offset=x", "offset"),
        ("offset=3", "upload"),
        ("final=false", "upload"),
        ("upload=a/b", "upload"),
        ("upload=", "upload"),
        ("upload=u&final=perhaps", "final"),
        ("dance=1", "dance"),
    ],
)
async def test_wrong_pieces_name_the_field(server, client, query, field):
    assert field_of(await client.put(f"{FILES}/f?{query}", content=b"x")) == [field]
    assert not server.files.calls


async def test_refusals_name_the_field(server, client):
    assert field_of(await client.get(f"{FILES}/missing"), 404) == ["path"]
    server.files.refusal = PayloadTooLarge("too large", {"body": "too large"})
    assert field_of(await client.put(f"{FILES}/f", content=b"x"), 413) == ["body"]
    server.files.refusal = Conflict("", {"offset": "3 bytes are here"})
    assert field_of(await client.put(f"{FILES}/f?upload=u&offset=5", content=b"x"), 409) == ["offset"]
    assert field_of(await client.get(f"{FILES}/f?length=-1")) == ["length"]
    assert field_of(await client.get(f"{FILES}/a%00b")) == ["path"]
    assert (await client.get(f"{FILES}/a%FF")).status_code == 400


async def test_a_piece_that_is_too_large(server):
    limits = Limits(piece_bytes=10, code_body_bytes=10, upload_files=1, upload_file_bytes=1)
    async with serving(limits) as small, small.client() as client:
        for method, query in (("PUT", "?upload=u&final=true"), ("PATCH", "")):
            small.files.files["f"] = b""
            reply = await client.request(method, f"{FILES}/f{query}", content=b"x" * 11)
            assert (reply.status_code, small.files.files["f"]) == (413, b"")
            assert (await client.request(method, f"{FILES}/f{query}", content=b"x" * 10)).status_code == 200
        assert (await client.put(f"{FILES}/f", content=b"x" * 1000)).status_code == 200, "taken as it comes"


async def test_files_need_a_key(server):
    headers = {"X-BackendAI-Version": VERSION, "Date": datetime.now(UTC).isoformat()}
    async with server.client(auth=None, headers=headers) as anonymous:
        for method, path in (("GET", "/files/f"), ("PUT", "/files/f"), ("POST", "/upload"), ("GET", "/logs")):
            assert (await anonymous.request(method, SESSION + path)).status_code == 401


async def test_nothing_is_written_while_the_server_stops(server, client):
    server.health.draining = True
    assert (await client.put(f"{FILES}/f", content=b"x")).status_code == 503
    assert (await client.post(f"{SESSION}/upload", files={"src": b"x"})).status_code == 503


async def test_a_file_that_breaks_off_is_no_whole_reply(server, client, errors_expected):
    server.files.files["f"] = bytes(5000)
    server.files.broken_at = 3000
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(f"{FILES}/f")
    assert (await client.get("/livez")).status_code == 200


# ---------------------------------------------------------------- the original's upload


def form(*files: tuple[str, bytes], boundary: str = "b0undary") -> bytes:
    """As the official client's library writes it: names are percent-encoded."""
    head = '--{}\r\nContent-Type: application/octet-stream\r\nContent-Disposition: form-data; name="src"; '
    parts = [
        head.format(boundary).encode() + f'filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


async def post(client, body: bytes, content_type: str = "multipart/form-data; boundary=b0undary"):
    return await client.post(f"{SESSION}/upload", content=body, headers={"Content-Type": content_type})


async def test_a_form_of_files_with_encoded_names(server, client):
    body = form(("sub%2Fdir%20file.py", b"1"), ("%C3%BC.txt", b"2\r\n--x"), ("100%", b""), ("ü", b"4"))
    reply = await post(client, body)
    assert (reply.status_code, reply.content) == (204, b"")
    assert server.files.files == {"sub/dir file.py": b"1", "ü.txt": b"2\r\n--x", "100%": b"", "ü": b"4"}
    assert {call[2] for call in server.files.calls} == {False}, "the reference may be a prefix"


async def test_forms_of_other_clients(server, client):
    files = [("src", ("a b.txt", b"1")), ("src", ("ü.txt", b"2")), ("src", ("sub/c", b"3"))]
    assert (await client.post(f"{SESSION}/upload", files=files)).status_code == 204
    assert server.files.files == {"a b.txt": b"1", "ü.txt": b"2", "sub/c": b"3"}


def test_an_extended_name_is_decoded_once():
    body = b"--b\r\nContent-Disposition: form-data; name=src; filename*=utf-8''50%2525\r\n\r\nx\r\n--b--\r\n"
    assert parse_files(body, "b", most=1, largest=10) == [("50%25", b"x")]


async def test_limits_of_a_form(server, client):
    twenty = [(f"f{number}", b"x") for number in range(20)]
    assert (await post(client, form(*twenty))).status_code == 204
    server.files.files.clear()
    reply = await post(client, form(*twenty, ("one-more", b"x")))
    assert (field_of(reply), reply.json()["msg"]) == (["body"], "Too many files")
    reply = await post(client, form(("big", b"x" * MIB)))
    assert (field_of(reply), reply.json()["msg"]) == (["big"], "Too large file")
    assert server.files.files == {}
    assert (await post(client, form(*[(f"f{n}", b"x" * (MIB - 1)) for n in range(20)]))).status_code == 204
    assert {len(content) for content in server.files.files.values()} == {MIB - 1}


async def test_a_limit_of_ones_own(server):
    async with serving(Limits(upload_file_bytes=10)) as small, small.client() as client:
        assert (await post(client, form(("f", b"x" * 9)))).status_code == 204
        assert (await post(client, form(("f", b"x" * 10)))).status_code == 400


@pytest.mark.parametrize("cut", [1, 3, 14, 20, 60, 120])
async def test_a_form_that_was_cut_off_is_refused_whole(server, client, cut):
    body = form(("a", b"content of a"), ("b", b"content of b"))
    reply = await post(client, body[: -2 - cut])
    assert reply.status_code == 400, reply.text
    assert server.files.files == {}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=b0undary"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary="),
        (b"garbage" * 100, "multipart/form-data; boundary=b0undary"),
        (form(("a", b"1")), "application/json"),
        (form(("", b"1")), "multipart/form-data; boundary=b0undary"),
        (form(("%00", b"1")), "multipart/form-data; boundary=b0undary"),
        (FIELD, "multipart/form-data; boundary=b"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
    ],
)  # fmt: skip
async def test_what_is_no_form_of_files(server, client, body, content_type):
    assert (await post(client, body, content_type)).status_code == 400
    assert not server.files.files


@given(st.binary(max_size=300))
def test_any_bytes_are_a_form_or_refused(body):
    for data in (body, form(("f", body)), form(("f", b"x"))[: len(body)], b"--b0undary\r\n" + body):
        try:
            parse_files(data, "b0undary", most=3, largest=1000)
        except Refusal:
            continue


# ---------------------------------------------------------------- the original's downloads


def parts_of(reply: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    head = f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + reply.content)
    assert message.get_content_type() == "multipart/mixed"
    return [(dict(part.items()), part.get_payload(decode=True)) for part in message.get_payload()]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("files", [["a", "b"], ["a"], "a"])
async def test_archives_come_as_parts(server, client, method, files):
    server.files.files = {"a": b"1", "b": b"2"}
    reply = await client.request(method, f"{SESSION}/download", json={"files": files})
    assert reply.status_code == 200
    parts = parts_of(reply)
    assert [content for _, content in parts] == [b"tar of 1", b"tar of 2"][: len(files)]
    assert {headers["Content-Encoding"] for headers, _ in parts} == {"identity"}
    assert server.files.calls[0] == ("archive", "a", 4 * MIB)


@pytest.mark.parametrize("files", [[], [1], None, 5, {}, ["a"] * 6, ["a\0"], ["missing"]])
async def test_wrong_downloads_name_the_field(server, client, files):
    server.files.files = {"a": b"1"}
    reply = await client.request("GET", f"{SESSION}/download", json={"files": files})
    assert field_of(reply) == ["files"]
    if files == ["missing"]:
        assert reply.json()["msg"] == "The file is not found."
        assert reply.json()["data"] == {"files": "there is no such file"}


async def test_one_file_as_an_archive_or_as_it_is(server, client):
    server.files.files = {"a": b"1"}
    reply = await client.request("GET", f"{SESSION}/download_single", json={"file": "a"})
    assert (reply.content, reply.headers["content-type"]) == (b"tar of 1", "application/octet-stream")
    assert (await client.get(f"{SESSION}/download_single?file=a")).content == b"tar of 1"
    reply = await client.post(f"{SESSION}/download_single", json={"file": "a"})
    assert (reply.content, reply.headers["content-type"]) == (b"1", "application/octet-stream")
    for method in ("GET", "POST"):
        reply = await client.request(method, f"{SESSION}/download_single", json={"file": "missing"})
        assert field_of(reply) == ["file"]


async def test_a_listing_is_text_within_json(server, client):
    server.files.files = {"d/f": b"1"}
    server.files.cut = True
    reply = await client.request("GET", f"{SESSION}/files", json={"path": "d"})
    answer = reply.json()
    assert json.loads(answer["files"]) == [
        {"filename": "f", "mode": "-rw-r--r--", "size": 1, "ctime": 1.5, "mtime": 2.5, "atime": 3.5}
    ]
    assert answer["abspath"] == "/home/work/d"
    assert "10000" in answer["errors"]
    server.files.cut = False
    answer = (await client.request("GET", f"{SESSION}/files", json={})).json()
    assert (answer["abspath"], answer["errors"]) == ("/home/work", "")


@pytest.mark.parametrize(
    ("body", "field"), [({"path": 5}, "path"), ({"path": "missing"}, "path"), ({"dir": "."}, "dir")]
)
async def test_wrong_listings_name_the_field(client, body, field):
    assert field_of(await client.request("GET", f"{SESSION}/files", json=body)) == [field]


async def test_a_listing_needs_a_body(client):
    assert field_of(await client.get(f"{SESSION}/files?path=.")) == ["body"]


async def test_logs(server, client):
    reply = await client.get(f"{SESSION}/logs?owner_access_key=AKIAOTHER")
    assert reply.json() == {"result": {"logs": "a log\n"}}
    assert server.files.calls == [("log", False, "AKIAOTHER")]
    assert field_of(await client.get(f"{SESSION}/logs?tail=5")) == ["tail"]
