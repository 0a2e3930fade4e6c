"""Parameters and replies of files and logs (api-sessions §5.4, §5.6)."""

import json
from typing import Annotated, Any

import attrs
from werkzeug.datastructures import Headers
from werkzeug.http import parse_etags, parse_range_header

from ...domain.errors import InvalidParameters
from ...domain.ids import is_run_id
from ...wire.files import ANY, HOME, MAX_ENTRIES, Condition, FileEntry, FileState, Listing
from ..decoding import INVALID, Param, clean_text
from .runs import LARGEST_OFFSET


def _offset(offset: int) -> None:
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError("value is not an offset")


def _length(length: int) -> None:
    if not 0 <= length <= LARGEST_OFFSET:
        raise ValueError("value is not a length")


def _new_path(path: str) -> None:
    if not path:
        raise ValueError("value is not a path")


def _upload(upload: str) -> None:
    if not is_run_id(upload):
        raise ValueError("value is not 1 to 64 letters, digits, dots, underscores and dashes")


@attrs.frozen(kw_only=True)
class ReadFile:
    """The query of ``GET …/files/{path}``, in bytes."""

    offset: Annotated[int, Param("offset", check=_offset)] = 0
    length: Annotated[int | None, Param("length", check=_length)] = None


@attrs.frozen(kw_only=True)
class WriteFile:
    """The query of ``PUT …/files/{path}``; without ``upload`` the body is the whole file."""

    upload: Annotated[str | None, Param("upload", check=_upload)] = None
    offset: Annotated[int, Param("offset", check=_offset)] = 0
    final: bool | None = None

    def check(self) -> None:
        """Refuse pieces that belong to no upload."""
        if self.upload is None and (self.offset or self.final is False):
            raise InvalidParameters(INVALID, {"upload": "is required for pieces of a file"})

    @property
    def is_final(self) -> bool:
        return self.upload is None if self.final is None else self.final


@attrs.frozen(kw_only=True)
class PatchFile:
    """The query of ``PATCH …/files/{path}``: where the body is written (at the end, without ``offset``); or
    ``rename``, the new path, where the body is empty."""

    offset: Annotated[int | None, Param("offset", check=_offset)] = None
    rename: Annotated[str | None, Param("rename", check=_new_path)] = None
    replace: bool | None = None

    def check(self, body: bytes) -> None:
        """Refuse what does not go together."""
        faults = {}
        if self.rename is None and self.replace is not None:
            faults["replace"] = "is for renaming"
        if self.rename is not None and self.offset is not None:
            faults["offset"] = "is for writing, not for renaming"
        if self.rename is not None and body:
            faults["body"] = "is empty where a file is renamed"
        if faults:
            raise InvalidParameters(INVALID, faults)


@attrs.frozen(kw_only=True)
class RemoveFile:
    """The query of ``DELETE …/files/{path}``; folders need ``recursive``."""

    recursive: bool = False


@attrs.frozen
class Bytes:
    """A part of a file: from ``first`` to ``last`` (None: to its end), or its ``suffix`` last bytes."""

    first: int = 0
    last: int | None = None
    suffix: int | None = None


def asked_range(header: str | None) -> Bytes | None:
    """The part of a file that a ``Range`` header asks for; None for all of it, as for what is not understood
    and for several parts at once (RFC 9110 lets a server send all then)."""
    found = parse_range_header(header)
    if found is None or found.units != "bytes" or len(found.ranges) != 1:
        return None
    ((first, end),) = found.ranges
    if max(abs(first), end or 0) > LARGEST_OFFSET:
        return None
    return Bytes(suffix=-first) if first < 0 else Bytes(first, None if end is None else end - 1)


def asked_condition(headers: Headers) -> Condition | None:
    """What ``If-Match`` and ``If-None-Match`` ask of a file before it is changed."""
    match = _tags(headers.get("If-Match"))
    unlike = _tags(headers.get("If-None-Match"), weak=True)
    return None if match is None and unlike is None else Condition(match=match, unlike=unlike)


def _tags(header: str | None, *, weak: bool = False) -> list[str] | None:
    if header is None:
        return None
    found = parse_etags(header)
    return [ANY] if found.star_tag else sorted(found.as_set(include_weak=weak))


def quoted(state: FileState) -> str:
    """The file's tag as headers have it."""
    return f'"{state.tag}"'


@attrs.frozen(kw_only=True)
class ListFiles:
    """The body of the legacy listing."""

    path: str = "."


@attrs.frozen(kw_only=True)
class Download:
    """The parameters of the legacy download: a path, or a list of them."""

    files: Any

    def paths(self, most: int) -> list[str]:
        paths = [self.files] if isinstance(self.files, str) else self.files
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise InvalidParameters(INVALID, {"files": "value is not a path or a list of paths"})
        if len(paths) > most:
            raise InvalidParameters("Too many files", {"files": f"more than {most} files"})
        return [clean_text(path) for path in paths]


@attrs.frozen(kw_only=True)
class DownloadSingle:
    """The parameters of the legacy download of one file."""

    file: str


@attrs.frozen(kw_only=True)
class ReadLogs:
    """The parameters of the legacy log."""

    owner_access_key: str | None = None


def folder_reply(listing: Listing) -> dict[str, Any]:
    """``{"path", "entries": […], "cut"}``."""
    return {"path": listing.path, "entries": [_entry(entry) for entry in listing.entries], "cut": listing.cut}


def legacy_listing(listing: Listing) -> dict[str, Any]:
    """The legacy reply, whose ``files`` is JSON text."""
    return {
        "files": json.dumps([_entry(entry) for entry in listing.entries]),
        "errors": f"Only {MAX_ENTRIES} of the files are listed." if listing.cut else "",
        "abspath": f"{HOME}/{listing.path}".rstrip("/"),
    }


def _entry(entry: FileEntry) -> dict[str, Any]:
    return attrs.asdict(entry)
