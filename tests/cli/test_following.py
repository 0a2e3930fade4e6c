"""Prompts answered from our standard input by a client whose requests get lost."""

import json
import os
from typing import Any

import trio

from backendai_mgr.cli.following import Follower

from .test_files import Answer, manager


class Asking:
    """A run that asks at these offsets, one after the other; every first reply to an answer is lost."""

    def __init__(self, *offsets: int) -> None:
        self.waiting = list(offsets)
        self.taken: dict[int, str | None] = {}
        self.posts: list[tuple[int, str | None]] = []
        self.done = trio.Event()

    def __call__(self, method: str, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        if method == "POST":
            return self._answer(json.loads(body))
        prompt = {"offset": self.waiting[0], "is_password": False} if self.waiting else None
        if prompt is None:
            self.done.set()
        return 200, {}, json.dumps({"prompt": prompt}).encode()

    def _answer(self, given: dict[str, Any]) -> Answer | None:
        offset, text = given["offset"], given["text"]
        self.posts.append((offset, text))
        if offset in self.taken:
            return (200 if self.taken[offset] == text else 409), {}, b"{}"
        self.taken[offset] = text
        self.waiting.remove(offset)
        return None


async def test_an_answer_whose_reply_is_lost_is_not_given_to_the_next_prompt(monkeypatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    run = Asking(5, 9, 14)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        async with manager(run) as client, trio.open_nursery() as nursery:
            follower = Follower(client, "id", "run")
            nursery.start_soon(follower._answer_prompts)
            follower.look_for_prompt()
            await run.done.wait()
            nursery.cancel_scope.cancel()
    assert run.taken == {5: "one", 9: "two", 14: None}
    assert run.posts == [(at, text) for at, text in run.taken.items() for _ in range(2)]
