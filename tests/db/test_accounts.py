import attrs
import pytest

from backendai_mgr.db.accounts import PgAccounts
from backendai_mgr.db.fixtures import example, populate
from backendai_mgr.domain.accounts import Role
from backendai_mgr.domain.errors import InvalidParameters
from backendai_mgr.domain.passwords import verify_password
from tests.db.samples import CALLER, KEY, fetch, fetchval


async def test_the_example_administrator_is_known_by_key(db):
    credential = await PgAccounts(db).credential(KEY)
    assert credential is not None
    assert credential.caller == CALLER
    assert credential.secret_key == "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


async def test_every_example_role_has_its_key(db):
    accounts = PgAccounts(db)
    keys = ["AKIAHUKCHDEZGEXAMPLE", "AKIANABBDUSEREXAMPLE", "AKIANAMONITOREXAMPLE"]
    callers = [(await accounts.credential(key)).caller for key in keys]
    assert [(caller.role, caller.is_admin) for caller in callers] == [
        (Role.ADMIN, True),
        (Role.USER, False),
        (Role.MONITOR, False),
    ]


@pytest.mark.parametrize(
    "change",
    ["UPDATE keypairs SET is_active = false", "UPDATE users SET status = 'inactive'"],
)
async def test_inactive_keys_and_users_are_nobody(db, change):
    await fetch(db, change)
    assert await PgAccounts(db).credential(KEY) is None


async def test_unknown_and_unstorable_keys_are_nobody_or_refused(db):
    accounts = PgAccounts(db)
    assert await accounts.credential("AKIA" + "X" * 300) is None
    for text in ("nul\0", "surrogate\udc80"):
        with pytest.raises(InvalidParameters, match="cannot be stored"):
            await accounts.credential(text)


async def test_a_fixture_may_be_applied_again_without_changing_anything(db):
    before = await fetch(db, "SELECT * FROM users ORDER BY uuid")
    inserted = await db.run(lambda conn: populate(conn, example("example-keypairs")))
    assert set(inserted.values()) == {0}
    assert await fetch(db, "SELECT * FROM users ORDER BY uuid") == before


async def test_passwords_are_stored_as_hashes(db):
    stored = await fetchval(db, "SELECT password FROM users WHERE username = 'admin'")
    assert stored.startswith("scrypt$16384$8$1$")
    assert verify_password("wJalrXUt", stored)
    assert not verify_password("wJalrXUT", stored)


async def test_presets_are_populated_with_their_slots(db):
    inserted = await db.run(lambda conn: populate(conn, example("example-resource-presets")))
    assert inserted == {"resource_presets": 3}
    row = (await fetch(db, "SELECT * FROM resource_presets ORDER BY name"))[0]
    assert row["resource_slots"]["mem"] == "34359738368"
    assert row["shared_memory"] is None


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"no_such_table": []}, "no_such_table"),
        ({"domains": [{"name": "x", "colour": "red"}]}, "domains.colour"),
        ({"groups": [{"name": "x", "domain_name": "nowhere"}]}, "groups"),
        ({"users": [{"email": "x@example.com", "role": "emperor"}]}, "users"),
    ],
)
async def test_a_wrong_fixture_is_refused_by_name_and_changes_nothing(db, document, named):
    good = {"domains": [{"name": "good"}]}
    with pytest.raises(InvalidParameters) as caught:
        await db.run(lambda conn: populate(conn, {**good, **document}))
    assert list(caught.value.data) == [named]
    assert await fetchval(db, "SELECT count(*) FROM domains WHERE name = 'good'") == 0


async def test_a_limited_policy_is_told_apart(db):
    await fetch(
        db,
        "UPDATE keypair_resource_policies SET default_for_unspecified = 'LIMITED',"
        ' total_resource_slots = \'{"cpu": "8"}\'',
    )
    policy = (await PgAccounts(db).credential(KEY)).caller.policy
    assert policy == attrs.evolve(CALLER.policy, unlimited_by_default=False, total_slots={"cpu": "8"})
