"""Agents join the cluster with a token."""

import logging
from collections.abc import Callable
from datetime import datetime

import attrs
import trio

from ..domain.joining import JoinRefused, JoinRequest, TokenText, check_origin, check_transport
from ..runtime.loglimit import LogLimit
from .ports import JoinStore

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Joined:
    """What an agent has to know of the cluster that it has joined."""

    cluster_id: str
    manager_public_key: str
    scaling_group: str


class JoinService:
    """Takes agents in. ``cluster_id`` and ``public_key`` are what they are told of their managers."""

    def __init__(
        self, store: JoinStore, *, cluster_id: str, public_key: str, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._cluster_id = cluster_id
        self._public_key = public_key
        self._now = now
        self._complaints = LogLimit()

    def admit(self, *, scheme: str, peer: str | None) -> None:
        """Before anything is read: `Forbidden` where the network can read along."""
        check_transport(scheme, peer)

    async def join(self, token: str, request: JoinRequest, *, peer: str | None) -> Joined:
        """Let the agent join; it may repeat that with its token for as long as that lives.

        `InvalidParameters` for an address that leads elsewhere, `JoinRefused` for the token, `Conflict` where
        another agent that is alive has the id or the key.
        """
        check_origin(request.addr, peer)
        ids = {"agent": request.id}
        try:
            outcome, stored = await self._store.join(TokenText.parse(token), request, now=self._now())
        except JoinRefused as refusal:
            held = self._complaints.admit(peer, trio.current_time())
            if held is not None:
                log.warning(
                    "an agent at %s may not join: %s (%d more before)", peer, refusal.reason, held, extra=ids
                )
            raise
        log.info("the agent at %s has joined (%s)", request.addr, outcome, extra=ids)
        return Joined(
            cluster_id=self._cluster_id,
            manager_public_key=self._public_key,
            scaling_group=stored.scaling_group,
        )
