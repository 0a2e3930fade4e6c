"""A run's output over however many connections it takes, each byte once."""

from collections.abc import Awaitable, Callable, Sequence

import attrs
import click
import trio

from ..domain.status import DEAD
from ..runtime.supervise import Backoff
from ..wire.records import Record, from_json
from .client import PATIENCE, Client
from .errors import ApiError, Away, CliError

#: A connection that was open for so many seconds worked, though nothing came.
_WORKED = 5.0
#: Of a session that is no more, and of one that is about to end.
_GONE, _ENDING = 404, 409


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

    A lost connection is opened again where it broke off; `Away` or `ApiError` after a minute without one that
    works. The run of a session that has ended meanwhile is lost.
    """
    path = f"/stream/session/{session_id}/runs/{run_id}"
    backoff = Backoff(first=0.1, longest=2.0, quiet=_WORKED)
    until: float | None = None
    while True:
        began = trio.current_time()
        works = False
        failure: CliError = Away(client.target.endpoint)
        try:
            async with client.frames(path, offset=offset) as frames:
                client.contact.regain()
                while (frame := await frames.receive()) is not None:
                    works = True
                    if records := [from_json(record) for record in frame.get("records", ())]:
                        await show(records)
                        offset = records[-1].end
                    if frame.get("finished"):
                        return RunEnd(frame["state"], frame["exit_code"], frame.get("reason") or "")
                works = works or trio.current_time() - began > _WORKED
        except Away as error:
            failure = error
        except ApiError as error:
            if error.status == _GONE and (lost := await _end_of_session(client, session_id)) is not None:
                return lost
            if not error.is_passing and error.status != _ENDING:
                raise
            failure = error
        if works or until is None:
            until = trio.current_time() + PATIENCE
        if trio.current_time() >= until:
            client.contact.regain()
            raise failure
        client.contact.lose(until)
        await trio.sleep(backoff.after(trio.current_time() - began))


async def _end_of_session(client: Client, session_id: str) -> RunEnd | None:
    """The end of a run whose session is no more; None if there is the session."""
    _, why = await client.call("GET", f"/session/{session_id}/why", patience=PATIENCE)
    if why["status"] not in DEAD:
        return None
    sentence = str(why["sentence"])
    return RunEnd("lost", None, f"its session has ended. {sentence}".removesuffix("."))


def exit_code_of(end: RunEnd) -> int:
    """The code's own exit code. A sentence on standard error says what an exit code cannot."""
    if end.state == "timeout":
        click.echo("The code was interrupted: it ran longer than --timeout allows.", err=True)
    if end.exit_code is not None:
        return end.exit_code
    click.echo(f"The run was lost: {end.reason or 'its session ended'}.", err=True)
    return 1
