"""Files and logs as the original serves them (api-sessions §5.4 and §5.6): all of a file in one message."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from urllib.parse import unquote_to_bytes

from quart import Blueprint, Response, request
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from ..domain.accounts import Caller
from ..domain.errors import BadRequest, InvalidParameters, NotFound
from ..domain.requests import invalid
from .auth import authenticated
from .body import legacy_parameters, raw_body, reply
from .context import admit_work, limits, services
from .decoding import LEGACY, decode, load_object
from .files import OCTETS, content_reply
from .limits import PART_HEAD_BYTES
from .models.files import Download, DownloadSingle, ListFiles, ReadLogs, legacy_listing

blueprint = Blueprint("legacy_files", __name__)


@blueprint.post("/session/<ref>/upload")
@authenticated
async def upload(caller: Caller, ref: str) -> Response:
    """Write the files of a multipart form; each one's name is its path."""
    admit_work()
    files = parse_files(
        await raw_body(limits().multipart_bytes),
        request.mimetype_params.get("boundary", "") if request.mimetype == "multipart/form-data" else "",
        most=limits().upload_files,
        largest=limits().upload_file_bytes,
    )
    for path, content in files:
        await services().files.write(caller, ref, path, content, exact=False)
    return Response("", status=204)


@blueprint.route("/session/<ref>/download", methods=["GET", "POST"])
@authenticated
async def download(caller: Caller, ref: str) -> Response:
    """A tar file for each path, as the parts of a multipart reply."""
    parameters = await legacy_parameters(Download)
    parts = []
    for path in parameters.paths(limits().download_files):
        with _missing_named("files"):
            parts.append(await services().files.archive(caller, ref, path, limits().archive_bytes))
    boundary = token_hex(16)
    return Response(_multipart(parts, boundary), content_type=f"multipart/mixed; boundary={boundary}")


@blueprint.get("/session/<ref>/download_single")
@authenticated
async def download_archive(caller: Caller, ref: str) -> Response:
    """One path as a tar file."""
    parameters = await legacy_parameters(DownloadSingle)
    with _missing_named("file"):
        archive = await services().files.archive(caller, ref, parameters.file, limits().archive_bytes)
    return Response(archive, content_type=OCTETS)


@blueprint.post("/session/<ref>/download_single")
@authenticated
async def download_content(caller: Caller, ref: str) -> Response:
    """One file as it is, which later clients ask for."""
    parameters = await legacy_parameters(DownloadSingle)
    with _missing_named("file"):
        return content_reply(await services().files.read(caller, ref, parameters.file, exact=False))


@blueprint.get("/session/<ref>/files")
@authenticated
async def list_files(caller: Caller, ref: str) -> Response:
    """What is in a folder; the list is JSON text within the JSON reply."""
    parameters = decode(ListFiles, load_object(await raw_body(limits().json_bytes)), LEGACY)
    with _missing_named("path"):
        listing = await services().files.list(caller, ref, parameters.path, exact=False)
    return reply(legacy_listing(listing))


@blueprint.get("/session/<ref>/logs")
@authenticated
async def logs(caller: Caller, ref: str) -> Response:
    """What the kernel and its runs wrote, of sessions that have ended too."""
    parameters = await legacy_parameters(ReadLogs)
    text = await services().files.log(caller, ref, exact=False, owner_access_key=parameters.owner_access_key)
    return reply({"result": {"logs": text}})


@contextmanager
def _missing_named(field: str) -> Iterator[None]:
    """A missing file is a wrong parameter here."""
    try:
        yield
    except NotFound as error:
        if error.kind != "file":
            raise
        raise InvalidParameters(
            "The file is not found.", {field: (error.data or {}).get("path", "")}
        ) from error


def _multipart(parts: list[bytes], boundary: str) -> bytes:
    head = f"--{boundary}\r\nContent-Type: {OCTETS}\r\nContent-Encoding: identity\r\n"
    pieces = []
    for part in parts:
        pieces += [head.encode(), b"Content-Length: %d\r\n\r\n" % len(part), part, b"\r\n"]
    return b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def parse_files(body: bytes, boundary: str, *, most: int, largest: int) -> list[tuple[str, bytes]]:
    """(path, content) of the files in a multipart form: at most *most*, each smaller than *largest* bytes."""
    if not boundary:
        raise invalid("body", "is not multipart/form-data")
    decoder = MultipartDecoder(boundary.encode(), max_parts=most + 1)
    decoder.receive_data(body)
    decoder.receive_data(None)
    files: list[tuple[str, bytearray]] = []
    try:
        while not isinstance(event := decoder.next_event(), Epilogue | NeedData):
            match event:
                case File():
                    if len(files) == most:
                        raise InvalidParameters("Too many files", {"body": f"more than {most} files"})
                    if sum(len(name) + len(value) for name, value in event.headers) > PART_HEAD_BYTES:
                        raise invalid("body", f"has a file with headers of more than {PART_HEAD_BYTES} bytes")
                    files.append((_path(event), bytearray()))
                case Field():
                    raise invalid(event.name or "body", "is not a file")
                case Data():
                    files[-1][1].extend(event.data)
                    if len(files[-1][1]) >= largest:
                        path = os.fsencode(files[-1][0]).decode(errors="replace")
                        raise InvalidParameters("Too large file", {path: f"is not below {largest} bytes"})
    except ValueError as error:
        raise BadRequest("The multipart body is malformed or was cut off.") from error
    return [(path, bytes(content)) for path, content in files]


def _path(file: File) -> str:
    """The file's path. Clients percent-encode ``filename``; of ``filename*`` that is undone already."""
    name = file.filename
    if "filename*=" not in file.headers.get("Content-Disposition", ""):
        name = unquote_to_bytes(name).decode("utf-8", "surrogateescape")
    if not name or "\0" in name:
        raise invalid("filename", "is not the name of a file")
    return name
