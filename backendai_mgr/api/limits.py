"""What clients may do to a worker. Without the web framework, which whoever reads settings need not load."""

import attrs

from ..runtime.config import ByteSize, Seconds

MIB = 1 << 20
#: Most bytes of the headers of a file in a multipart upload.
PART_HEAD_BYTES = 8192


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds of what clients may do to one worker; the ``[limits]`` table of manager.toml."""

    #: Connections of clients that are open at once. At the limit an idle one gives way, else the newest is
    #: answered with 503.
    connections: int = 4096
    #: Requests under way at once, and websockets that are open; one more is answered with 503.
    requests: int = 1024
    websockets: int = 1024
    #: Requests and websockets at once on a connection of HTTP/2.
    streams: int = 100
    #: A request's line and headers: how long (else 431), and how soon they must be complete (else 408).
    head_bytes: ByteSize = ByteSize(64 << 10)
    head_seconds: Seconds = Seconds(20)
    #: A request's body must be complete within this time (else 408).
    body_seconds: Seconds = Seconds(60)
    #: A connection without a request is closed after this time.
    keep_alive_seconds: Seconds = Seconds(75)
    #: A client that takes nothing for so long is cut.
    send_seconds: Seconds = Seconds(60)
    #: An open websocket is pinged so often; a client that was silent for three times as long is cut.
    ping_seconds: Seconds = Seconds(30)
    #: A websocket that must close now waits so long for its client.
    close_seconds: Seconds = Seconds(2)
    #: The first message of a websocket that begins with one.
    first_message_seconds: Seconds = Seconds(30)
    #: A message that comes by websocket (else closed with 1009).
    message_bytes: ByteSize = ByteSize(16 * MIB + 65536)
    #: A body of JSON that carries no code (else 413).
    json_bytes: ByteSize = ByteSize(MIB)
    #: Code of a run, as UTF-8; and the body that carries it, in which JSON may escape each byte.
    code_bytes: ByteSize = ByteSize(8 * MIB)
    code_body_bytes: ByteSize = ByteSize(16 * MIB + 65536)
    #: Multipart uploads: how many files, and how large each may be (it must be smaller than this).
    upload_files: int = 20
    upload_file_bytes: ByteSize = ByteSize(MIB)
    #: Downloads as archives: how many, and how large each may be.
    download_files: int = 5
    archive_bytes: ByteSize = ByteSize(4 * MIB)
    #: A piece of a file that comes as a raw body.
    piece_bytes: ByteSize = ByteSize(16 * MIB)
    #: Body that nobody wants is read on so far and so long, lest the client misses the reply.
    drain_bytes: ByteSize = ByteSize(64 * MIB)
    drain_seconds: Seconds = Seconds(10)

    def __attrs_post_init__(self) -> None:
        for name, value in attrs.asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name.replace('_', '-')} must be more than 0")

    @property
    def multipart_bytes(self) -> int:
        """The body of a multipart upload, with room for what is around the files."""
        return self.upload_files * (self.upload_file_bytes + PART_HEAD_BYTES) + 65536
