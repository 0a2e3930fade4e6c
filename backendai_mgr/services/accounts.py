"""Key pairs for authentication, cached in each worker so that a request needs no query."""

from collections import OrderedDict
from collections.abc import Callable, Collection

import attrs
import trio

from ..domain.accounts import Credential
from ..domain.ids import AccessKey
from .ports import Accounts

#: While notifications may be missed, an entry is trusted for this many seconds only.
TRUST_WITHOUT_NOTIFICATIONS = 5.0
CAPACITY = 10_000


@attrs.frozen
class _Entry:
    credential: Credential | None
    read_at: float


class KeyCache:
    """The key pairs that requests used lately. Unknown keys are remembered too, so guesses cost nothing.

    The hub says when keys changed (`drop_all`) and whether it would hear of it (`notified`).
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        refused: Collection[str] = (),
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """``refused`` names access keys that count as unknown, whatever the database says."""
        self._accounts = accounts
        self._refused = frozenset(refused)
        self._clock = clock
        self._entries: OrderedDict[AccessKey, _Entry] = OrderedDict()
        self._generation = 0
        self.notified = False

    def drop_all(self) -> None:
        """Forget everything: some key, user or policy changed."""
        self._generation += 1
        self._entries.clear()

    async def credential(self, access_key: AccessKey) -> Credential | None:
        """The active key pair with this access key, or None. `StoreUnavailable` when it has to be read and
        cannot be."""
        if access_key in self._refused:
            return None
        entry = self._entries.get(access_key)
        if entry is not None and self._trusted(entry):
            self._entries.move_to_end(access_key)
            return entry.credential
        generation = self._generation
        read_at = self._clock()
        credential = await self._accounts.credential(access_key)
        if generation == self._generation:
            self._entries[access_key] = _Entry(credential, read_at)
            self._entries.move_to_end(access_key)
            if len(self._entries) > CAPACITY:
                self._entries.popitem(last=False)
        return credential

    def _trusted(self, entry: _Entry) -> bool:
        return self.notified or self._clock() - entry.read_at < TRUST_WITHOUT_NOTIFICATIONS
