"""Sockets of a kernel's network, handed out by its shim."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.shim.client import Client, Shim, until

LISTEN = """
import socket
listener = socket.create_server((%r, 0), family=socket.%s)
print(listener.getsockname()[1], flush=True)
for _ in range(2):
    listener.accept()[0].sendall(b"hello")
listener.close()
"""


def ask(client: Client, port: Any) -> socket.socket | dict[str, Any]:
    """The socket, or the refusal."""
    client.post("socket", port=port)
    data, descriptors, _, _ = socket.recv_fds(client.socket, 4096, 1)
    answer = json.loads(data[4:])
    return socket.socket(fileno=descriptors[0]) if "ok" in answer else answer["error"]


@pytest.mark.parametrize(("address", "family"), [("127.0.0.1", "AF_INET"), ("::1", "AF_INET6")])
def test_a_socket_reaches_what_listens_inside(shim: Shim, client: Client, address: str, family: str) -> None:
    spec = {"mode": "query", "code": LISTEN % (address, family), "timeout": None}
    client.ask("start", run_id="q", incarnation=1, digest="q", spec=spec)
    until(lambda: shim.output("q").endswith("\n"))
    port = int(shim.output("q"))
    with Client(shim.socket) as other:  # without a word of hello, so that it gets no notes
        for _ in range(2):
            made = ask(other, port)
            assert isinstance(made, socket.socket)
            with made:
                made.settimeout(5)
                made.connect((address, port))
                assert made.recv(10) == b"hello"
        assert client.ended("q")["state"] == "finished"
        refused = ask(other, port)
        assert isinstance(refused, dict)
        assert refused["code"] == "not-found"


@pytest.mark.parametrize("port", [None, -1, "80"])
def test_what_is_no_port_is_refused(shim: Shim, port: Any) -> None:
    with Client(shim.socket) as other:
        refused = ask(other, port)
    assert isinstance(refused, dict)
    assert refused["code"] == "bad-request"
