"""The agent's methods on the files of a kernel's work folder, and on its log."""

from typing import ClassVar
from uuid import UUID

import attrs
from attrs.validators import and_, ge, le, max_len, optional

from .call import MAX_OUTPUT, Call, is_run_id, is_size
from .files import Condition, LogPlace

_FILE_OFFSET = and_(ge(0), le(2**62))


@attrs.frozen(kw_only=True)
class FileCall(Call):
    """A call about a path in a kernel's work folder; relative, or below ``/home/work``.

    Refused: no-such-kernel, no-such-file, outside, bad-path, denied, file-failed.
    """

    kernel_id: UUID
    path: str

    @property
    def timeout(self) -> float:
        return 60.0


@attrs.frozen(kw_only=True)
class ListFiles(FileCall):
    """-> `Listing` of a folder, or of the file itself."""

    method: ClassVar[str] = "list_files"


@attrs.frozen(kw_only=True)
class ReadFile(FileCall):
    """-> `FilePiece` from ``offset`` on. Refused: is-folder."""

    method: ClassVar[str] = "read_file"
    offset: int = attrs.field(validator=_FILE_OFFSET)
    max_bytes: int = attrs.field(validator=is_size)


@attrs.frozen(kw_only=True)
class WriteFile(FileCall):
    """-> `Written` when it was ``final``, which puts the file in place; else None. A piece of an upload.

    It may be repeated.

    Refused: is-folder, too-large, disk-full, quota-used-up, kernel-ended, precondition; upload-gap when
    pieces before it are missing.
    """

    method: ClassVar[str] = "write_file"
    upload: str = attrs.field(validator=is_run_id)
    offset: int = attrs.field(validator=_FILE_OFFSET)
    data: bytes = attrs.field(validator=max_len(MAX_OUTPUT))
    final: bool
    condition: Condition | None = None


@attrs.frozen(kw_only=True)
class DropUpload(FileCall):
    """-> None. Forget the pieces of an upload that will not go on; an unknown one is fine."""

    method: ClassVar[str] = "drop_upload"
    upload: str = attrs.field(validator=is_run_id)


@attrs.frozen(kw_only=True)
class PatchFile(FileCall):
    """-> `Written`. Write into a file that is there: at ``offset``, or (None) at its end.

    Refused: is-folder, too-large, disk-full, kernel-ended, precondition; upload-gap past its end.
    """

    method: ClassVar[str] = "patch_file"
    offset: int | None = attrs.field(validator=optional(_FILE_OFFSET))
    data: bytes = attrs.field(validator=max_len(MAX_OUTPUT))
    condition: Condition | None = None


@attrs.frozen(kw_only=True)
class MoveFile(FileCall):
    """-> `Written`. Give a file or a folder the path ``to``; with ``replace`` also that of another.

    Refused: kernel-ended, precondition; exists, and target for what is wrong with ``to``.
    """

    method: ClassVar[str] = "move_file"
    to: str
    replace: bool
    condition: Condition | None = None


@attrs.frozen(kw_only=True)
class RemoveFile(FileCall):
    """-> whether it is gone. A file, or with ``recursive`` a folder: as much of it as is done at a time.

    Refused: is-folder, kernel-ended, precondition.
    """

    method: ClassVar[str] = "remove_file"
    recursive: bool
    condition: Condition | None = None


@attrs.frozen(kw_only=True)
class ArchiveFile(FileCall):
    """-> a tar file, as bytes, of a file or a folder. Refused: too-large."""

    method: ClassVar[str] = "archive_file"
    max_bytes: int = attrs.field(validator=is_size)


@attrs.frozen(kw_only=True)
class ReadLog(Call):
    """-> `LogPiece` that ends before a place (None: the end). Refused: no-such-kernel."""

    method: ClassVar[str] = "read_log"
    kernel_id: UUID
    before: LogPlace | None
    max_bytes: int = attrs.field(validator=is_size)


CALLS: tuple[type[Call], ...] = (
    *(ListFiles, ReadFile, ArchiveFile, ReadLog),
    *(WriteFile, DropUpload, PatchFile, MoveFile, RemoveFile),
)
