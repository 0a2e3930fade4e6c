"""Joining a cluster: the request to a manager, repeated while there is a chance, and what is learned."""

import json
import logging
import platform
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import trio

from ..domain.addresses import is_local_host
from ..domain.joining import check_key
from ..runtime.config import ConfigError
from ..runtime.failpoint import failpoint
from ..runtime.supervise import Backoff
from .config import AgentConfig
from .membership import LinkPlan, Membership, store_membership, token_digest

log = logging.getLogger(__name__)

#: Seconds: for one attempt, between attempts at first and at most, and for all of them.
_ATTEMPT = 20.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
PATIENCE = 300.0
#: No answer to a join is longer, bytes.
_MAX_ANSWER = 65536
_TRY_AGAIN = frozenset({408, 425, 429})


class _Away(Exception):
    """The manager cannot take the agent in now; later it may."""


async def join(
    config: AgentConfig, plan: LinkPlan, public_key: str, data_dir: Path, *, patience: float = PATIENCE
) -> Membership:
    """Join the cluster of ``config.manager_url`` with our *public_key*, and keep what is learned.

    `ConfigError`, in a sentence, when the manager refuses or stays away for *patience* seconds. After a crash
    the same call may be made again: the manager knows the agent by its id and key.
    """
    body = {
        "id": config.id,
        "addr": plan.addr,
        "public_key": public_key,
        "architecture": platform.machine(),
        "token": config.join_token,
    }
    answer = await _persist(config, body, patience)
    failpoint("join.after_reply")
    try:
        membership = Membership(
            agent_id=config.id,
            bind=str(plan.bind),
            addr=plan.addr,
            cluster_id=_text(answer, "cluster_id"),
            manager_public_key=_text(answer, "manager_public_key"),
            token_digest=token_digest(config.join_token),
        )
        check_key(membership.manager_public_key)
    except ValueError as error:
        raise ConfigError(f"{config.manager_url} is no manager of ours: {error}.") from error
    store_membership(data_dir, membership)
    failpoint("join.after_membership")
    log.info("joined the cluster %s at %s", membership.cluster_id, config.manager_url)
    return membership


async def address_towards(url: str) -> str:
    """This machine's address on the way to *url*; `ConfigError` when there is no way."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        (family, _, _, _, target), *_ = await trio.socket.getaddrinfo(
            parts.hostname, port, type=trio.socket.SOCK_DGRAM
        )
        with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as probe:
            await probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"`agent.manager-url`: there is no way to {url} now ({error.strerror});"
            " with `agent.bind` set it is waited for."
        ) from error


async def _persist(config: AgentConfig, body: dict[str, str], patience: float) -> dict[str, object]:
    url = config.manager_url.rstrip("/")
    backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
    trouble = "no answer in time"
    with trio.move_on_after(patience):
        while True:
            began = trio.current_time()
            try:
                return await _attempt(url, body, config.manager_ca)
            except _Away as error:
                trouble = str(error)
            pause = backoff.after(trio.current_time() - began)
            log.warning("%s does not take this agent in yet, again in %.1f s: %s", url, pause, trouble)
            await trio.sleep(pause)
    raise ConfigError(f"{url} did not take this agent in within {patience:g} s: {trouble}.")


async def _attempt(url: str, body: dict[str, str], authority: Path | None) -> dict[str, object]:
    try:
        trust = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"`agent.manager-ca`: {authority} holds no certificates: {error}.") from error
    local = is_local_host(urlsplit(url).hostname)
    try:
        with trio.fail_after(_ATTEMPT):
            async with (
                httpx.AsyncClient(verify=trust, trust_env=not local, timeout=_ATTEMPT) as client,
                client.stream("POST", f"{url}/agents/join", json=body) as reply,
            ):
                content = b""
                async for chunk in reply.aiter_bytes():
                    if len(content) <= _MAX_ANSWER:
                        content += chunk
    except trio.TooSlowError:
        raise _Away("no answer in time") from None
    except httpx.HTTPError as error:
        raise _of_transport(url, error) from error
    if len(content) > _MAX_ANSWER:
        raise ConfigError(f"{url} is no manager of ours: its answer is too long.")
    return _read(url, reply, content)


def _of_transport(url: str, error: httpx.HTTPError) -> Exception:
    """What a failed exchange means: a certificate that is not trusted will not be so the next time."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigError(
                f"The certificate of {url} is not trusted ({cause.verify_message});"
                " `agent.manager-ca` names the file of a private authority."
            )
        if isinstance(cause, ssl.SSLError):
            return ConfigError(f"{url} does not speak TLS as we do ({cause.reason}).")
        cause = cause.__cause__ or cause.__context__
    return _Away(str(error) or type(error).__name__)


def _read(url: str, reply: httpx.Response, content: bytes) -> dict[str, object]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    if reply.status_code == 200:
        return answer
    said = str(answer.get("msg") or answer.get("title") or reply.reason_phrase).removesuffix(".")
    if isinstance(answer.get("data"), dict):
        said = "; ".join([said, *(f"{field} {fault}" for field, fault in answer["data"].items())])
    if reply.status_code >= 500 or reply.status_code in _TRY_AGAIN:
        raise _Away(f"{reply.status_code}: {said}")
    raise ConfigError(f"{url} refuses this agent ({reply.status_code}): {said}.")


def _text(answer: dict[str, object], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise ValueError(f"its answer has no {name}")
    return value
