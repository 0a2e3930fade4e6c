"""Runs in a session of its own, over HTTP."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import attrs
import httpx

from .http import Http

#: Seconds until everything is as before.
HEALED = 30


@attrs.define
class Runs:
    http: Http
    name: str
    session_id: str
    #: The status of the latest run.
    last: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    @contextmanager
    def in_new_session(
        cls,
        http: Http,
        name: str,
        *,
        mem: str = "192m",
        environ: Mapping[str, str] = {},
        image: str = "python",
    ) -> "Iterator[Runs]":
        """A session that is removed at the end, if it is still there."""
        name = f"{name}-{uuid4().hex[:8]}"
        config = {"resources": {"cpu": 1, "mem": mem}, "environ": dict(environ)}
        made = http.call("POST", "/session", body={"name": name, "image": image, "config": config})
        assert made.status_code == 201, made.text
        assert made.json()["status"] == "RUNNING", http.call("GET", f"/session/{name}/why").text
        try:
            yield cls(http, name, made.json()["sessionId"])
        finally:
            http.call("DELETE", f"/session/{made.json()['sessionId']}")

    def start(self, code: str | None = None, **body: Any) -> str:
        """Start a run and return its URL."""
        url = f"/session/{self.session_id}/runs/{uuid4().hex}"
        answer = self.http.call("PUT", url, body={**({} if code is None else {"code": code}), **body})
        assert answer.status_code == 201, answer.text
        return url

    def run(self, code: str, **body: Any) -> tuple[str, int | None]:
        """Run to the end: standard output, and the exit code (None: it was lost)."""
        return self.follow(self.start(code, **body))

    def batch(self, **steps: Any) -> tuple[str, int | None]:
        """The same of a batch run."""
        return self.follow(self.start(mode="batch", **steps))

    def follow(self, url: str) -> tuple[str, int | None]:
        text, offset = "", 0
        while True:
            answer = self.http.call("GET", f"{url}/output?offset={offset}&wait=20")
            if answer.status_code != 200:  # the session has gone with its kernel
                self.last = {"state": "lost", "reason": self._end_reason()}
                return text, None
            piece = answer.json()
            text += "".join(r["data"] for r in piece["records"] if r["stream"] == "stdout")
            offset = piece["next_offset"]
            if piece["finished"]:
                self.last = self.http.call("GET", url).json()
                if "state" not in self.last:
                    self.last = {"state": "lost", "reason": self._end_reason()}
                return text, piece["exit_code"]

    def _end_reason(self) -> str:
        return str(self.http.call("GET", f"/session/{self.session_id}/why").json()["info"])

    def list(self) -> Any:
        """The session's runs, newest first."""
        return self.http.call("GET", f"/session/{self.session_id}/runs").json()["runs"]

    def status(self) -> str:
        """The session's."""
        return str(self.http.call("GET", f"/session/{self.session_id}/why").json()["status"])

    def why(self) -> str:
        """The sentence of `why`."""
        return str(self.http.call("GET", f"/session/{self.session_id}/why").json()["sentence"])

    def missing(self) -> Mapping[str, str]:
        """What the agent cannot do."""
        details = self.http.call("GET", "/readyz?verbose").json()["details"]
        (agent,) = details["agents"].values()
        return dict(agent["missing"])


def patiently(call: Callable[[], httpx.Response], seconds: float = HEALED) -> httpx.Response:
    """Repeat a call that may be repeated until it is neither refused for now nor cut off."""
    until = time.monotonic() + seconds
    while True:
        try:
            answer = call()
            if answer.status_code not in (503, 502):
                return answer
            assert int(answer.headers["Retry-After"]) > 0
        except httpx.TransportError as error:
            answer = httpx.Response(599, text=str(error))
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)
