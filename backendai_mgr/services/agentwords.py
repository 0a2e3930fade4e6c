"""What an agent or its link says of a call, as refusals of ours."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..domain.errors import AgentFailed, Conflict, Unavailable
from ..wire.callosum import AgentError
from ..wire.rpc import AgentRefusal, AgentUnreachable

#: The refusal for an agent's code, made from the agent's own words.
Refusals = Mapping[str, Callable[[str], Exception]]

_COMMON: Refusals = {
    "no-such-kernel": lambda message: Unavailable("The session's kernel is not there (yet, or any more)."),
    "kernel-silent": lambda message: Unavailable("The session's kernel does not answer."),
    "kernel-ended": lambda message: Conflict("The session's kernel has ended."),
}


@contextmanager
def told_by_agent(refusals: Refusals) -> Iterator[None]:
    """Turn what calls in the block raise into refusals: those of *refusals*, and what can be said of any."""
    try:
        yield
    except AgentRefusal as refusal:
        known = {**_COMMON, **refusals}.get(refusal.code)
        message = refusal.message or refusal.code
        raise (AgentFailed("execute", message) if known is None else known(message)) from refusal
    except AgentUnreachable as error:
        raise Unavailable("The session's agent does not answer.", retry_after=2) from error
    except AgentError as error:
        raise AgentFailed("execute", str(error)) from error
