"""Our HTTP client: signed requests, problems told in a line, lost ones tried again."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import attrs
import httpx
import trio

from ..domain.signing import SignedParts, sign
from ..runtime.paths import default_data_dir
from ..runtime.supervise import Backoff
from .contact import Contact
from .errors import ApiError, Away, CliError
from .frames import CONNECT, Frames, open_frames

API_VERSION = "v6.20220315"
#: What a request without a content type is signed as.
OCTETS = "application/octet-stream"
#: Seconds for an ordinary request, and for how long a lost connection is tried again.
TIMEOUT = 30.0
PATIENCE = 60.0


@attrs.frozen(kw_only=True)
class Target:
    """A manager and the key pair to use there."""

    endpoint: str
    access_key: str
    secret_key: str = attrs.field(repr=False)


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


@attrs.define
class Client:
    """Requests to one manager. Made by `open_client`."""

    target: Target
    _http: httpx.AsyncClient
    contact: Contact = attrs.field(init=False, factory=Contact)
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

        With *patience* a lost connection, or a status of 502 to 504, is tried again for that many seconds:
        only for requests that may be repeated. A manager that never was there is not waited for. *timeout*
        None waits as long as the manager takes to answer.
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
        until: float | None = None
        repeated = False
        while True:
            failure: ApiError | Away
            try:
                response = await self._send(method, path, content, content_type, timeout)
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                self._answered = passing = self._answered or not unsent
                failure = Away(self.target.endpoint, sent=not unsent)
                failure.__cause__ = error
                repeated = repeated or not unsent
            else:
                self._answered = True
                if response.is_success:
                    self.contact.regain()
                    return response
                failure = ApiError.of(response.status_code, response.content)
                passing = failure.is_passing
                failure.repeated = repeated
                repeated = repeated or passing
            # Patience begins when it is needed, however long the first answer took to be missed.
            until = trio.current_time() + patience if until is None else until
            if not passing or trio.current_time() >= until:
                self.contact.regain()
                raise failure
            self.contact.lose(until)
            await trio.sleep(backoff.after(0.0))

    async def _send(
        self, method: str, path: str, content: bytes, content_type: str | None, timeout: float | None
    ) -> httpx.Response:
        request = self._http.build_request(
            method,
            self.target.endpoint + path,
            content=content,
            timeout=httpx.Timeout(timeout, connect=CONNECT),
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
        async with open_frames(url, headers) as frames:
            yield frames

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


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
