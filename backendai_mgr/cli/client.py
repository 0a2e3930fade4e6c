"""Our HTTP client: signed requests, problems told in a line, streams that survive a lost connection."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import attrs
import httpx
import trio
import trio_websocket

from ..domain.signing import SignedParts, sign
from ..runtime.paths import default_data_dir
from ..runtime.supervise import Backoff
from ..wire.records import Record, from_json
from .errors import CliError

API_VERSION = "v6.20220315"
#: What a request without a content type is signed as.
OCTETS = "application/octet-stream"
#: Seconds for an ordinary request, and for how long a lost connection is tried again.
TIMEOUT = 30.0
PATIENCE = 60.0
_CONNECT = 5.0
#: Seconds for the manager to answer our close of a stream.
_CLOSE = 1.0
#: The largest frame of a stream that is taken.
_LARGEST_FRAME = 16 << 20


@attrs.frozen(kw_only=True)
class Target:
    """A manager and the key pair to use there."""

    endpoint: str
    access_key: str
    secret_key: str = attrs.field(repr=False)


class ApiError(CliError):
    """The manager refused; ``status`` is HTTP's and ``problem`` the parsed problem+json, perhaps empty."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(_told(status, problem))
        self.status = status
        self.problem = problem


class Away(CliError):
    """No manager answers at the endpoint; ``sent``: it may have had the request all the same."""

    def __init__(self, endpoint: str, *, sent: bool = False) -> None:
        super().__init__(f"No manager answers at {endpoint}; start it with `backendai-mgr up`.")
        self.sent = sent


def find_target(data_dir: Path | None, environ: Mapping[str, str] = os.environ) -> Target:
    """The local system of *data_dir* when that is given; else what ``BACKEND_ENDPOINT``, ``…ACCESS_KEY`` and
    ``…SECRET_KEY`` say; else the local system of the default folder."""
    if data_dir is None and (endpoint := environ.get("BACKEND_ENDPOINT")):
        try:
            return Target(
                endpoint=endpoint.partition(",")[0].rstrip("/"),
                access_key=environ["BACKEND_ACCESS_KEY"],
                secret_key=environ["BACKEND_SECRET_KEY"],
            )
        except KeyError as missing:
            raise CliError(f"BACKEND_ENDPOINT is set but {missing.args[0]} is not.") from None
    folder = data_dir or default_data_dir()
    try:
        said = json.loads((folder / "up.json").read_text())
    except FileNotFoundError:
        raise CliError(f"No manager runs out of {folder}; start it with `backendai-mgr up`.") from None
    except PermissionError:
        raise CliError(f"The manager of {folder} belongs to another account; set BACKEND_ENDPOINT.") from None
    return Target(**{name: said[name] for name in ("endpoint", "access_key", "secret_key")})


@attrs.frozen
class Frames:
    """The JSON frames of a stream."""

    _websocket: trio_websocket.WebSocketConnection

    async def receive(self) -> Mapping[str, Any] | None:
        """The next frame; None after a close or the loss of the connection."""
        try:
            frame: Mapping[str, Any] = json.loads(await self._websocket.get_message())
        except trio_websocket.ConnectionClosed:
            return None
        return frame

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send a frame; it is lost when the connection is, as `receive` will tell."""
        with suppress(trio_websocket.ConnectionClosed):
            await self._websocket.send_message(json.dumps(frame))


@attrs.define
class Client:
    """Requests to one manager. Made by `open_client`."""

    target: Target
    _http: httpx.AsyncClient
    #: Somebody answers there: from then on a refused connection may be a restart, and is tried again.
    _answered: bool = attrs.field(init=False, default=False)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        timeout: float | None = TIMEOUT,
        patience: float = 0.0,
    ) -> tuple[int, Any]:
        """(status, parsed body) of a request that succeeded; `ApiError` or `Away` otherwise.

        With *patience* a lost connection or a 503 is tried again for that many seconds: only for requests
        that may be repeated. A manager that never was there is not waited for. *timeout* None waits as long
        as the manager takes to answer.
        """
        content = b"" if body is None else json.dumps(body).encode()
        kind = None if body is None else "application/json"
        response = await self.exchange(method, path, content, kind, timeout=timeout, patience=patience)
        return response.status_code, _json(response.content)

    async def exchange(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        content_type: str | None = None,
        *,
        timeout: float | None = TIMEOUT,
        patience: float = 0.0,
    ) -> httpx.Response:
        """The response to a request with a body of any kind; the rest as `call`."""
        backoff = Backoff(first=0.1, longest=2.0)
        until = trio.current_time() + patience
        while True:
            try:
                response = await self._send(method, path, content, content_type, timeout)
                self._answered = True
                if response.status_code != 503 or trio.current_time() >= until:
                    break
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if trio.current_time() >= until or (unsent and not self._answered):
                    raise Away(self.target.endpoint, sent=not unsent) from error
                self._answered = self._answered or not unsent
            await trio.sleep(backoff.after(0.0))
        if not response.is_success:
            parsed = _json(response.content)
            raise ApiError(response.status_code, parsed if isinstance(parsed, dict) else {})
        return response

    async def _send(
        self, method: str, path: str, content: bytes, content_type: str | None, timeout: float | None
    ) -> httpx.Response:
        request = self._http.build_request(
            method,
            self.target.endpoint + path,
            content=content,
            timeout=httpx.Timeout(timeout, connect=_CONNECT),
        )
        if content_type is not None:
            request.headers["Content-Type"] = content_type
        target, host = request.url.raw_path.decode(), request.headers["Host"]
        request.headers.update(self._signed(method, target, host, content_type or OCTETS))
        return await self._http.send(request)

    @asynccontextmanager
    async def frames(self, path: str, **query: Any) -> AsyncIterator[Frames]:
        """The frames of a stream, from a websocket that is open inside."""
        url = httpx.URL(f"{self.target.endpoint}{path}?{urlencode(query)}")
        headers = self._signed("GET", url.raw_path.decode(), url.netloc.decode(), OCTETS)
        # The library leaves the stream open when the manager closes first, so it is ours.
        async with await _connect(url) as stream, _nursery() as nursery:
            websocket = await _upgrade(nursery, stream, url, headers)
            yield Frames(websocket)
            with trio.move_on_after(_CLOSE):
                await websocket.aclose()

    def _signed(self, method: str, target: str, host: str, content_type: str) -> dict[str, str]:
        now = datetime.now(UTC)
        parts = SignedParts(
            method=method,
            target=target,
            date=now.isoformat(),
            host=host,
            content_type=content_type,
            version=API_VERSION,
        )
        signature = sign(parts, self.target.secret_key, now.date())
        credential = f"{self.target.access_key}:{signature}"
        return {
            "Date": parts.date,
            "X-BackendAI-Version": API_VERSION,
            "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={credential}",
        }


@asynccontextmanager
async def open_client(target: Target) -> AsyncIterator[Client]:
    """A client whose connections are closed at the end. Proxies of the environment are not for loopback."""
    async with httpx.AsyncClient(trust_env=not target.endpoint.startswith("http://127.")) as http:
        yield Client(target, http)


_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def _connect(url: httpx.URL) -> _Stream:
    try:
        with trio.fail_after(_CONNECT):
            if url.scheme == "https":
                return await trio.open_ssl_over_tcp_stream(url.host, url.port or 443, https_compatible=True)
            return await trio.open_tcp_stream(url.host, url.port or 80)
    except (OSError, trio.TooSlowError) as error:
        raise Away(f"{url.scheme}://{url.netloc.decode()}") from error


async def _upgrade(
    nursery: trio.Nursery, stream: _Stream, url: httpx.URL, headers: Mapping[str, str]
) -> trio_websocket.WebSocketConnection:
    """The handshake; `ApiError` when the manager refuses, `Away` when it does not answer."""
    try:
        with trio.fail_after(_CONNECT):
            return await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                url.netloc.decode(),
                url.raw_path.decode(),
                extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                max_message_size=_LARGEST_FRAME,
                receive_buffer_size=1 << 16,
            )
    except trio_websocket.ConnectionRejected as rejected:
        parsed = _json(rejected.body or b"")
        raise ApiError(rejected.status_code, parsed if isinstance(parsed, dict) else {}) from rejected
    except (trio_websocket.HandshakeError, OSError, trio.TooSlowError) as error:
        raise Away(f"{url.scheme}://{url.netloc.decode()}", sent=True) from error


@asynccontextmanager
async def _nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end, and lets a lone error of the body out as it is."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


@attrs.frozen
class RunEnd:
    """How a run ended; the exit code is None when it is lost."""

    state: str
    exit_code: int | None
    reason: str


async def follow_run(
    client: Client,
    session_id: str,
    run_id: str,
    show: Callable[[Sequence[Record]], Awaitable[None]],
    *,
    offset: int = 0,
) -> RunEnd:
    """Hand a run's output to *show*, piece by piece from *offset* on; returns how the run ended.

    A lost connection is opened again where it broke off; `Away` after a minute without one.
    """
    heard = trio.current_time()
    backoff = Backoff(first=0.1, longest=2.0, quiet=5.0)
    while True:
        opened = trio.current_time()
        try:
            async with client.frames(f"/stream/session/{session_id}/runs/{run_id}", offset=offset) as frames:
                while (frame := await frames.receive()) is not None:
                    if records := [from_json(record) for record in frame.get("records", ())]:
                        await show(records)
                        offset = records[-1].end
                    if frame.get("finished"):
                        return RunEnd(frame["state"], frame["exit_code"], frame.get("reason") or "")
                    heard = trio.current_time()
        except (Away, ApiError) as error:
            passing = isinstance(error, Away) or error.status == 503
            if not passing or trio.current_time() > heard + PATIENCE:
                raise
        await trio.sleep(backoff.after(trio.current_time() - opened))


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _told(status: int, problem: Mapping[str, Any]) -> str:
    """A problem in one line: title, message, and the fields that are wrong."""
    text = str(problem.get("title") or f"The manager answered with status {status}").rstrip(".")
    if message := problem.get("msg"):
        text += f": {message}"
    details = problem.get("agent-details")
    if isinstance(details, dict) and details.get("exception"):
        text += f": {details['exception']}"
    data = problem.get("data")
    if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
        fields = "; ".join(f"{field}: {value}" for field, value in data.items())
        text += f" ({fields})" if fields else ""
    return " ".join(text.split())
