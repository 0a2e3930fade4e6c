"""``/session/{name}/files/{path}``: files of any size, read and written in pieces."""

from quart import Blueprint, Response, request

from ..domain.accounts import Caller
from ..services.files import Content, IsFolder
from .auth import authenticated
from .body import query_parameters, raw_body, reply
from .context import admit_work, limits, services
from .models.files import ReadFile, WriteFile, folder_reply

blueprint = Blueprint("files", __name__)

OCTETS = "application/octet-stream"


@blueprint.get("/session/<name>/files/", defaults={"path": ""})
@blueprint.get("/session/<name>/files/<path:path>")
@authenticated
async def get(caller: Caller, name: str, path: str) -> Response:
    """The bytes of a file, or what is in a folder, as JSON."""
    query = query_parameters(ReadFile)
    try:
        content = await services().files.read(
            caller, name, path, exact=True, offset=query.offset, length=query.length
        )
    except IsFolder:
        return reply(folder_reply(await services().files.list(caller, name, path, exact=True)))
    return content_reply(content)


@blueprint.put("/session/<name>/files/<path:path>")
@authenticated
async def put(caller: Caller, name: str, path: str) -> Response:
    """Write a file, or a piece of one; it is in place, whole, after the final piece."""
    admit_work()
    query = query_parameters(WriteFile)
    query.check()
    body = await raw_body(limits().piece_bytes)
    end = await services().files.write(
        caller,
        name,
        path,
        body,
        exact=True,
        upload=query.upload,
        offset=query.offset,
        final=query.is_final,
    )
    return reply({"path": path, "end": end, "final": query.is_final})


def content_reply(content: Content) -> Response:
    """The bytes of a file as they come from its agent; ``ETag`` tells one file of this name from the next."""
    only_head = request.method == "HEAD"
    response = Response(
        b"" if only_head else content.pieces,
        headers={"X-File-Size": str(content.size), "ETag": f'W/"{content.inode:x}"'},
        content_type=OCTETS,
    )
    response.content_length = content.length
    response.timeout = None  # a large file takes as long as its reader
    return response
