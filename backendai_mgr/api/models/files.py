"""Parameters and replies of files and logs (api-sessions §5.4, §5.6)."""

import json
from typing import Annotated, Any

import attrs

from ...domain.errors import InvalidParameters
from ...domain.ids import is_run_id
from ...wire.files import HOME, MAX_ENTRIES, FileEntry, Listing
from ..decoding import INVALID, Param, clean_text
from .runs import LARGEST_OFFSET


def _offset(offset: int) -> None:
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError("value is not an offset")


def _length(length: int) -> None:
    if not 0 <= length <= LARGEST_OFFSET:
        raise ValueError("value is not a length")


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
