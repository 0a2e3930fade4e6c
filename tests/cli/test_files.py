"""`cp` against a manager that loses answers, and names that are not to be trusted."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import pytest
import trio

from backendai_mgr.cli import files
from backendai_mgr.cli.client import Client, Target, open_client
from backendai_mgr.cli.errors import CliError
from backendai_mgr.cli.files import PIECE, Progress, Remote, _download, _upload, parse_place

Answer = tuple[int, dict[str, str], bytes]
#: (method, path, query, body) to an answer.
Answering = Callable[[str, str, dict[str, str], bytes], Answer | None]
MISSING: Answer = (404, {}, json.dumps({"title": "No such file.", "data": {"path": "missing"}}).encode())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name:path", Remote("name", "path")),
        ("name:", Remote("name", "")),
        ("name:a:b/c", Remote("name", "a:b/c")),
        ("name:/home/work/x", Remote("name", "/home/work/x")),
        ("path", Path("path")),
        ("./a:b", Path("a:b")),
        ("/tmp/a:b", Path("/tmp/a:b")),
        (":x", Path(":x")),
    ],
)
def test_one_side_is_in_a_session(text: str, place: Remote | Path) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("path", ["/etc/passwd", "/", "/home/workshop"])
def test_only_the_work_folder_of_a_session(path: str) -> None:
    with pytest.raises(CliError, match="/home/work"):
        parse_place(f"name:{path}")


def test_paths_are_quoted() -> None:
    assert Remote("näme", "/home/work/a b/ü%#?").url(offset=1) == (
        "/session/n%C3%A4me/files/a%20b/%C3%BC%25%23%3F?offset=1"
    )
    assert (Remote("n", "") / "x", Remote("n", "d/") / "x") == (Remote("n", "x"), Remote("n", "d/x"))


@asynccontextmanager
async def manager(
    answer: Callable[[str, str, dict[str, str], bytes], Answer | None],
) -> AsyncIterator[Client]:
    """A client of a server that answers each request as told; None loses the answer."""

    async def serve(stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            request, body = None, b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    break
            if request is None:
                return
            url = urlsplit(request.target.decode())
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            said = answer(request.method.decode(), unquote(url.path).partition("/files/")[2], query, body)
            if said is not None:
                status, headers, content = said
                fields = [("Connection", "close"), ("Content-Length", str(len(content))), *headers.items()]
                await stream.send_all(
                    connection.send(h11.Response(status_code=status, headers=fields))
                    + connection.send(h11.Data(data=content))
                )

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, serve, 0)
            port = listeners[0].socket.getsockname()[1]
            target = Target(endpoint=f"http://127.0.0.1:{port}", access_key="k", secret_key="s")
            async with open_client(target) as client:
                yield client
            nursery.cancel_scope.cancel()


class Session:
    """A session's files as the manager serves them; answers are lost at the requests numbered in *lost*."""

    def __init__(self, *lost: int) -> None:
        self.files: dict[str, bytes] = {}
        self.folders: dict[str, list[dict[str, str]]] = {}
        self.pieces: list[tuple[str, int, int, str]] = []
        self.tag = "1"
        self._lost = set(lost)
        self._asked = 0

    def __call__(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        self._asked += 1
        said = (self._put if method == "PUT" else self._get)(path, query, body)
        return None if self._asked in self._lost else said

    def _put(self, path: str, query: dict[str, str], body: bytes) -> Answer:
        offset = int(query["offset"])
        self.pieces.append((query["upload"], offset, len(body), query["final"]))
        self.files[path] = self.files.get(path, b"")[:offset] + body
        return 200, {}, b"{}"

    def _get(self, path: str, query: dict[str, str], _: bytes) -> Answer:
        if path in self.folders:
            listing = {"entries": self.folders[path], "cut": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        if path not in self.files:
            return MISSING
        offset, data = int(query.get("offset", 0)), self.files[path]
        headers = {"Content-Type": files.OCTETS, "X-File-Size": str(len(data)), "X-File-Id": self.tag}
        return 200, headers, data[offset : offset + int(query["length"])]


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


DATA = bytes(range(256)) * (2 * PIECE // 256) + b"end"


async def test_an_upload_repeats_the_pieces_whose_answers_are_lost(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    session = Session(3, 4)
    async with manager(session) as client:
        assert await _upload(tmp_path / "f", Remote("n", "d/g"), client, False, Progress()) is False
    assert session.files == {"d/g": DATA}
    uploads, offsets, sizes, finals = zip(*session.pieces, strict=True)
    assert len(set(uploads)) == 1
    assert offsets == (0, PIECE, PIECE, PIECE, 2 * PIECE)
    assert max(sizes) == PIECE
    assert finals == ("false", "false", "false", "false", "true")


async def test_a_download_repeats_the_pieces_that_are_lost(tmp_path: Path) -> None:
    session = Session(3, 4)
    session.files["d/f"] = DATA
    async with manager(session) as client:
        await _download(Remote("n", "d/f"), tmp_path, client, False, Progress())
    assert (tmp_path / "f").read_bytes() == DATA
    assert names_below(tmp_path) == ["f"]


async def test_a_file_that_is_replaced_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    session = Session()
    session.files["f"] = DATA

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        if int(query.get("offset", 0)) > 0:
            session.tag = "2"
        return session(method, path, query, body)

    async with manager(answer) as client:
        with pytest.raises(CliError, match="was replaced"):
            await _download(Remote("n", "f"), tmp_path / "f", client, False, Progress())
    assert names_below(tmp_path) == []


@pytest.mark.parametrize("name", ["..", "a/b", "/etc", "", ".", "\udcff"])
async def test_names_from_a_session_never_lead_out_of_our_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session()
    entries = [{"filename": name, "mode": kind} for kind in ("-rw-r--r--", "drwxr-xr-x")]
    session.folders["d"] = [*entries, {"filename": "good", "mode": "-rw-r--r--"}]
    session.files["d/good"] = b"good"
    async with manager(session) as client:
        assert await _download(Remote("n", "d"), tmp_path / "x", client, True, Progress()) is True
    assert names_below(tmp_path) == ["x", "x/good"]
    assert len(re.findall("Left out", capsys.readouterr().err)) == 2


async def test_a_folder_needs_to_be_asked_for(tmp_path: Path) -> None:
    session = Session()
    session.folders["d"] = []
    async with manager(session) as client:
        for copy in (
            _download(Remote("n", "d"), tmp_path / "x", client, False, Progress()),
            _upload(tmp_path, Remote("n", "d"), client, False, Progress()),
        ):
            with pytest.raises(CliError, match="copy it with -r"):
                await copy
