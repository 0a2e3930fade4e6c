from uuid import UUID

import attrs
import pytest

from backendai_mgr.domain.access import check_acting_for
from backendai_mgr.domain.accounts import Caller, KeypairPolicy, Role
from backendai_mgr.domain.errors import Forbidden

POLICY = KeypairPolicy(
    name="default",
    max_concurrent_sessions=5,
    max_containers_per_session=1,
    max_session_lifetime=0,
    idle_timeout=0,
    unlimited_by_default=True,
    total_slots={},
)
USER = Caller(
    access_key="U",
    user_id=UUID(int=1),
    email="u@example.com",
    role=Role.USER,
    domain="default",
    is_admin=False,
    rate_limit=100,
    policy=POLICY,
)
OTHER = attrs.evolve(USER, access_key="O", user_id=UUID(int=2))
ADMIN = attrs.evolve(USER, access_key="A", role=Role.ADMIN, is_admin=True)
SUPER = attrs.evolve(USER, access_key="S", role=Role.SUPERADMIN, is_admin=True)
AWAY = attrs.evolve(USER, access_key="W", domain="elsewhere")


@pytest.mark.parametrize(
    ("caller", "owner"), [(USER, USER), (ADMIN, USER), (SUPER, USER), (SUPER, AWAY), (SUPER, ADMIN)]
)
def test_may_act(caller, owner):
    check_acting_for(caller, owner)


@pytest.mark.parametrize(
    ("caller", "owner"), [(USER, OTHER), (USER, ADMIN), (ADMIN, AWAY), (ADMIN, SUPER), (AWAY, USER)]
)
def test_may_not_act(caller, owner):
    with pytest.raises(Forbidden):
        check_acting_for(caller, owner)
