"""``/session/{name}/files/{path}``: files of any size, read and changed; ETags say which one of a name."""

from quart import Blueprint, Response, request

from ..domain.accounts import Caller
from ..domain.errors import NotSatisfiable, PreconditionFailed
from ..services.files import Content, IsFolder
from ..wire.call import MAX_OUTPUT
from ..wire.files import Condition, FileState
from .auth import authenticated
from .body import body_pieces, query_parameters, raw_body, reply
from .context import admit_work, limits, services
from .models.files import (
    Bytes,
    PatchFile,
    ReadFile,
    RemoveFile,
    WriteFile,
    asked_condition,
    asked_range,
    folder_reply,
    quoted,
)

blueprint = Blueprint("files", __name__)

OCTETS = "application/octet-stream"


@blueprint.get("/session/<name>/files/", defaults={"path": ""})
@blueprint.get("/session/<name>/files/<path:path>")
@authenticated
async def get(caller: Caller, name: str, path: str) -> Response:
    """The bytes of a file, or what is in a folder, as JSON.

    A part is asked for by ``offset`` and ``length`` (200, of what there is of it), or by ``Range`` (206).
    """
    query = query_parameters(ReadFile)
    condition = asked_condition(request.headers)
    part = asked_range(request.headers.get("Range")) if query == ReadFile() else None
    try:
        content = await _read(caller, name, path, query, part)
    except IsFolder:
        return reply(folder_reply(await services().files.list(caller, name, path, exact=True)))
    if condition is not None and not condition.holds(content.file.tag):
        if not Condition(match=condition.match).holds(content.file.tag):
            raise PreconditionFailed("", {"path": "it is another one by now"})
        return Response(b"", status=304, headers={"ETag": quoted(content.file)})
    if part is not None and request.headers.get("If-Range", quoted(content.file)) != quoted(content.file):
        return content_reply(await _read(caller, name, path, query, None))
    return content_reply(content) if part is None else _part_reply(content, part)


async def _read(caller: Caller, name: str, path: str, query: ReadFile, part: Bytes | None) -> Content:
    read = services().files.read
    if part is None:
        return await read(caller, name, path, exact=True, offset=query.offset, length=query.length)
    first = part.first
    if part.suffix is not None:
        # Its end is known only when it has been looked at.
        there = await read(caller, name, path, exact=True, length=0)
        first = max(0, there.file.size - part.suffix)
    length = None if part.last is None else part.last - first + 1
    return await read(caller, name, path, exact=True, offset=first, length=length)


def _part_reply(content: Content, part: Bytes) -> Response:
    size = content.file.size
    first = part.first if part.suffix is None else max(0, size - part.suffix)
    if not content.length:
        raise NotSatisfiable("The file ends before.", size)
    response = content_reply(content)
    response.status_code = 206
    response.headers["Content-Range"] = f"bytes {first}-{first + content.length - 1}/{size}"
    return response


@blueprint.put("/session/<name>/files/<path:path>")
@authenticated
async def put(caller: Caller, name: str, path: str) -> Response:
    """Write a file, or a piece of one; it is in place, whole, after the final piece.

    201 when there was none of its name. The body of a whole file is taken as it comes, and may be of any
    length that the session's agent allows. ``If-Match`` and ``If-None-Match`` are heeded.
    """
    admit_work()
    query = query_parameters(WriteFile)
    query.check()
    condition = asked_condition(request.headers)
    files = services().files
    if query.upload is None:
        done = await files.write_all(caller, name, path, body_pieces(), condition=condition)
    else:
        done = await files.write(
            caller,
            name,
            path,
            await raw_body(limits().piece_bytes),
            exact=True,
            upload=query.upload,
            offset=query.offset,
            final=query.is_final,
            condition=condition,
        )
    answer = {"path": path, "end": done.end, "final": query.is_final}
    if done.file is None:
        return reply(answer)
    return reply(answer, 201 if done.file.created else 200, {"ETag": quoted(done.file)})


@blueprint.patch("/session/<name>/files/<path:path>")
@authenticated
async def patch(caller: Caller, name: str, path: str) -> Response:
    """Write the body (at most 4 MiB) into a file that is there, or give the file or folder another path.

    ``If-Match`` is heeded.
    """
    admit_work()
    query = query_parameters(PatchFile)
    body = await raw_body(min(limits().piece_bytes, MAX_OUTPUT))
    query.check(body)
    condition = asked_condition(request.headers)
    files = services().files
    if query.rename is not None:
        replace = bool(query.replace)
        file = await files.move(caller, name, path, query.rename, replace=replace, condition=condition)
    else:
        file = await files.patch(caller, name, path, body, offset=query.offset, condition=condition)
    path = query.rename or path
    return reply({"path": path, "size": file.size}, headers={"ETag": quoted(file)})


@blueprint.delete("/session/<name>/files/<path:path>")
@authenticated
async def delete(caller: Caller, name: str, path: str) -> Response:
    """Remove a file, or with ``recursive`` a folder and all that is in it. ``If-Match`` is heeded."""
    admit_work()
    query = query_parameters(RemoveFile)
    condition = asked_condition(request.headers)
    await services().files.remove(caller, name, path, recursive=query.recursive, condition=condition)
    return Response(b"", status=204)


def content_reply(content: Content) -> Response:
    """The bytes of a file as they come from its agent."""
    only_head = request.method == "HEAD"
    response = Response(
        b"" if only_head else content.pieces, headers=_told(content.file), content_type=OCTETS
    )
    response.content_length = content.length
    response.timeout = None  # a large file takes as long as its reader
    return response


def _told(file: FileState) -> dict[str, str]:
    """``ETag`` tells one state of a file from the next, ``X-File-Id`` one file of this name from the next."""
    return {
        "X-File-Size": str(file.size),
        "X-File-Id": f"{file.inode:x}",
        "ETag": quoted(file),
        "Accept-Ranges": "bytes",
    }
