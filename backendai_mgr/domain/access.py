"""Who may act for whom (api-sessions §2.6)."""

from .accounts import Caller, Role
from .errors import Forbidden


def check_acting_for(caller: Caller, owner: Caller) -> None:
    """Raise `Forbidden` unless *caller* may act with the key pair of *owner*."""
    if caller.access_key == owner.access_key or caller.is_superadmin:
        return
    if not caller.is_admin:
        raise Forbidden("Only administrators may act for another key pair.")
    if owner.domain != caller.domain:
        raise Forbidden("Domain administrators may act for users of their own domain only.")
    if owner.role is Role.SUPERADMIN:
        raise Forbidden("Domain administrators may not act for superadmins.")
