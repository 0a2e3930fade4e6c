"""One run, read over every transport: curl, httpx, websockets; HTTP/1.1 and HTTP/2; with and without TLS."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trustme
import wsproto.connection
import wsproto.events

from .harness import Installation, Up, processes_of, temporary_dir, wait_until
from .http import Http

pytestmark = pytest.mark.system

NAME = "edge-session"
CODE = "import time\nfor number in range(5):\n    print(number, flush=True)\n    time.sleep(0.05)\n"
WRITTEN = "0\n1\n2\n3\n4\n"
SIGNED = ("Authorization", "Date", "X-BackendAI-Version", "Content-Type")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(installation: Installation, authority: trustme.CA) -> Iterator[tuple[Up, Path]]:
    """A system with a certificate, and the file of the authority that issued it."""
    with temporary_dir() as folder:
        issued = authority.issue_cert("127.0.0.1")
        certificate, key, trusted = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        trusted.write_bytes(authority.cert_pem.bytes())
        settings = [f"ssl-cert={certificate}", f"ssl-privkey={key}", "ssl-enabled=true"]
        options = [word for setting in settings for word in ("--set", f"manager.{setting}")]
        with Up(installation, folder / "data", *options) as up:
            assert up.said["endpoint"].startswith("https://127.0.0.1:")
            yield up, trusted


def test_a_new_certificate_is_shown_after_a_hangup(secure: tuple[Up, Path], authority: trustme.CA) -> None:
    up, trusted = secure
    folder = trusted.parent
    assert shown(up, trusted) != "renewed"
    issued = authority.issue_cert("127.0.0.1", common_name="renewed")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    (worker,) = [
        pid for pid, command in processes_of(up.data_dir).items() if "backendai_mgr worker" in command
    ]
    os.kill(worker, signal.SIGHUP)
    wait_until(lambda: shown(up, trusted) == "renewed", 10, "the new certificate")


def shown(up: Up, trusted: Path) -> str:
    """The name in the certificate that the server shows."""
    address = urlsplit(up.said["endpoint"])
    context = ssl.create_default_context(cafile=str(trusted))
    with (
        socket.create_connection((address.hostname, address.port), timeout=10) as plain,  # type: ignore
        context.wrap_socket(plain, server_hostname=address.hostname) as secured,
    ):
        certificate = secured.getpeercert()
    assert certificate is not None
    names = dict(pair for (pair,) in certificate["subject"])  # type: ignore
    return str(names.get("commonName", ""))


@pytest.fixture(params=["http", "https"])
def place(request: pytest.FixtureRequest, shared_up: Up) -> tuple[Up, Path | None]:
    """A running system, without and with TLS, and whom to trust."""
    up, trusted = request.getfixturevalue("secure") if request.param == "https" else (shared_up, None)
    return up, trusted


@pytest.fixture
def signer(place: tuple[Up, Path | None]) -> Iterator[Http]:
    up, trusted = place
    http = Http(up.said)
    http.client.close()
    verify = True if trusted is None else ssl.create_default_context(cafile=str(trusted))
    http.client = httpx.Client(
        base_url=http.endpoint, timeout=30, verify=verify, http1=trusted is None, http2=trusted is not None
    )
    body = {"name": NAME, "image": "python", "reuseIfExists": True}
    reply = http.call("POST", "/session", body=body)
    assert reply.status_code in (200, 201), reply.text
    yield http
    http.call("DELETE", f"/session/{NAME}")
    http.close()


def started(http: Http, run_id: str) -> str:
    """The address of a new run."""
    target = f"/session/{NAME}/runs/{run_id}"
    assert http.call("PUT", target, body={"code": CODE}).status_code == 201
    return target


def written(batches: list[dict[str, object]]) -> str:
    return "".join(r["data"] for batch in batches for r in batch.get("records", ()))  # type: ignore


def test_our_own_command(place: tuple[Up, Path | None]) -> None:
    up, trusted = place
    environ = {} if trusted is None else {"SSL_CERT_FILE": str(trusted)}
    done = up.command("run", CODE, environ=environ)
    assert (done.returncode, done.stdout) == (0, WRITTEN), done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.1", "--http2", "--http2-prior-knowledge"])
def test_curl(place: tuple[Up, Path | None], signer: Http, version: str) -> None:
    _, trusted = place
    target = started(signer, f"curl{version}") + "/output"
    signed = signer.headers("GET", target)
    command = [
        "curl",
        "--silent",
        "--no-buffer",
        version,
        "--max-time",
        "30",
        "--write-out",
        "%{http_version}",
    ]
    command += [word for name in SIGNED for word in ("--header", f"{name}: {signed[name]}")]
    command += ["--header", "Accept: text/event-stream"]
    command += [] if trusted is None else ["--cacert", str(trusted)]
    done = subprocess.run([*command, signer.endpoint + target], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    batches = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert written(batches) == WRITTEN
    assert batches[-1] == {"finished": True, "state": "finished", "exit_code": 0, "reason": ""}
    assert lines[-1] == ("1.1" if version == "--http1.1" else "2")


def test_httpx(place: tuple[Up, Path | None], signer: Http) -> None:
    target = started(signer, "httpx") + "/output"
    headers = signer.headers("GET", target) | {"Accept": "text/event-stream"}
    with signer.client.stream("GET", target, headers=headers) as reply:
        assert reply.http_version == ("HTTP/1.1" if place[1] is None else "HTTP/2")
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert written([json.loads(line.removeprefix("data: ")) for line in lines]) == WRITTEN


def test_a_websocket_over_http2(place: tuple[Up, Path | None], signer: Http) -> None:
    _, trusted = place
    target = started(signer, "websocket")
    stream = f"/stream{target}"
    address = urlsplit(signer.endpoint)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=30) as plain:
        connection = plain
        if trusted is not None:
            context = ssl.create_default_context(cafile=str(trusted))
            context.set_alpn_protocols(["h2"])
            connection = context.wrap_socket(plain, server_hostname=address.hostname)
            assert connection.selected_alpn_protocol() == "h2"
        with connection:
            assert written(frames_of(connection, signer, stream)) == WRITTEN


def frames_of(connection: socket.socket, signer: Http, target: str) -> list[dict[str, object]]:
    """What a websocket by extended CONNECT (RFC 8441) brings until it is closed."""
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    http2.initiate_connection()
    head = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", target)]
    head += [(":authority", signer.host), ("sec-websocket-version", "13")]
    head += [(name.lower(), value) for name, value in signer.headers("GET", target).items()]
    http2.send_headers(1, head)
    websocket = wsproto.connection.Connection(wsproto.connection.ConnectionType.CLIENT)
    frames: list[dict[str, object]] = []
    while True:
        connection.sendall(http2.data_to_send())
        for event in http2.receive_data(connection.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                assert dict(event.headers)[":status"] == "200"
            elif isinstance(event, h2.events.DataReceived):
                http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                websocket.receive_data(event.data)
        for message in websocket.events():
            if isinstance(message, wsproto.events.TextMessage):
                frames.append(json.loads(message.data))
            elif isinstance(message, wsproto.events.CloseConnection):
                assert message.code == 1000
                return frames
