"""What the arbiter decides to have done, see there."""

from __future__ import annotations

from typing import NamedTuple

from backendai_mgr.shim.run import Run


class Send(NamedTuple):
    """Hand this run's code to the interpreter, then tell that it runs."""

    run: Run


class Execute(NamedTuple):
    """Execute this command line as the present step of the run, then tell that it runs."""

    run: Run
    line: str


class StepEnded(NamedTuple):
    """Log that the step has ended, or was skipped, with this exit code."""

    run: Run
    step: str
    exit_code: int


class Asked(NamedTuple):
    """Log the prompt, and note its offset in the run; then tell."""

    run: Run
    is_password: bool


class Answer(NamedTuple):
    """Hand this text (None: the end of all input) to whoever asked, then tell."""

    run: Run
    asked: int | None
    text: str | None


class Interrupt(NamedTuple):
    """Send SIGINT to what executes this run."""

    run: Run


class Open(NamedTuple):
    """Start the program of this run, which runs beside the others; then tell that it runs."""

    run: Run
    line: str | None


class HangUp(NamedTuple):
    """Ask the program of a run beside the others to end, or kill it."""

    run: Run
    force: bool


class Ended(NamedTuple):
    """Write this run's status, then tell."""

    run: Run


class Kill(NamedTuple):
    """End the kernel."""

    reason: str


class Queued(NamedTuple):
    """Tell that this run waits."""

    run: Run


Effect = Send | Execute | StepEnded | Asked | Answer | Interrupt | Open | HangUp | Ended | Kill | Queued
