"""The references: the same server with next to nothing on it. ``python -m bench.bare NAME`` runs one.

Each is a process of its own with the settings that the program gives Hypercorn. It prints its port.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import hypercorn.trio
import trio
from quart_trio import QuartTrio

from backendai_mgr.api.limits import Limits
from backendai_mgr.api.server.serving import protocol_config

FRAME = b"x" * 65536


async def hello_asgi(scope: Any, receive: Any, send: Any) -> None:
    """An answer without any framework."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def hello_quart() -> Any:
    """The least that Quart-Trio can answer."""
    app = QuartTrio(__name__)

    @app.get("/")
    async def hello() -> str:
        return "hello"

    return app


async def websocket_asgi(scope: Any, receive: Any, send: Any) -> None:
    """``/flood/N`` sends N frames of 64 KiB, ``/wait/N`` after a message; ``/echo`` answers one message.

    All close then.
    """
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/echo":
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
    else:
        if scope["path"].startswith("/wait/"):
            await receive()
        for _ in range(int(scope["path"].rpartition("/")[2])):
            await send({"type": "websocket.send", "bytes": FRAME})
    await send({"type": "websocket.close", "code": 1000})


async def lifespan(receive: Any, send: Any) -> None:
    """Say that start and stop are done."""
    for _ in range(2):
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})


APPLICATIONS: dict[str, Callable[[], Any]] = {
    "asgi": lambda: hello_asgi,
    "quart": hello_quart,
    "websocket": lambda: websocket_asgi,
}


async def serve(name: str) -> None:
    config = protocol_config(Limits())
    config.bind = ["127.0.0.1:0"]
    async with trio.open_nursery() as nursery:
        start = partial(hypercorn.trio.serve, APPLICATIONS[name](), config)
        binds: list[str] = await nursery.start(start)
        print(binds[0].rpartition(":")[2], flush=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
