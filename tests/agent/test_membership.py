"""How an agent serves its link: the plan, as a table; and the files that it keeps."""

import json
import os
import stat
from pathlib import Path

import attrs
import pytest

from backendai_mgr.agent.config import AgentConfig
from backendai_mgr.agent.membership import (
    LinkPlan,
    Membership,
    load_membership,
    own_keys,
    plan_link,
    store_membership,
    token_digest,
)
from backendai_mgr.domain.addresses import is_local_host
from backendai_mgr.runtime.config import ConfigError, ListenAddress
from backendai_mgr.runtime.curve import new_key_pair

URL = "https://manager:8081"
KNOWN = Membership(
    agent_id="i-1",
    bind="10.0.0.1:6001",
    addr="tcp://10.0.0.1:6001",
    cluster_id="c",
    manager_public_key=new_key_pair()[0],
    token_digest=token_digest("old"),
)
LOCAL = attrs.evolve(KNOWN, bind="127.0.0.1:6001", addr="tcp://127.0.0.1:6001")


def config(**settings) -> AgentConfig:
    return AgentConfig(id="i-1", **settings)


def planned(known=None, towards=None, **settings) -> LinkPlan:
    return plan_link(config(**settings), known, towards_manager=towards)


@pytest.mark.parametrize(
    ("known", "settings", "bind"),
    [
        (None, {}, "127.0.0.1:6001"),
        (None, {"bind": "127.0.0.1:0"}, "127.0.0.1:0"),
        (None, {"bind": "[::1]:6001"}, "[::1]:6001"),
        # What `up` asks for in a folder from which a cluster was joined before.
        (KNOWN, {"bind": "127.0.0.1:6001"}, "127.0.0.1:6001"),
        (LOCAL, {"bind": "127.0.0.1:6001"}, "127.0.0.1:6001"),
    ],
)
def test_on_loopback_the_link_is_plain_unless_a_cluster_is_named(known, settings, bind):
    plan = planned(known, **settings)
    assert (str(plan.bind), plan.is_plain, plan.join) == (bind, True, False)


@pytest.mark.parametrize(
    ("known", "settings"),
    [
        (KNOWN, {}),
        (KNOWN, {"bind": "10.0.0.1:6001"}),
        (KNOWN, {"bind": "0.0.0.0:7000", "advertised_addr": "10.0.0.1:6001"}),
        (KNOWN, {"manager_url": URL}),
        (KNOWN, {"manager_url": "https://moved:1", "join_token": "old"}),
        (LOCAL, {}),
        (LOCAL, {"bind": "127.0.0.1:6001", "manager_url": URL}),
    ],
)
def test_who_has_joined_needs_no_token_again(known, settings):
    plan = planned(known, **settings)
    assert (plan.membership, plan.join, plan.addr) == (known, False, known.addr)


@pytest.mark.parametrize(
    ("known", "towards", "settings", "bind", "addr"),
    [
        (None, None, {"bind": "10.0.0.9:6001"}, "10.0.0.9:6001", "tcp://10.0.0.9:6001"),
        (None, "10.0.0.9", {}, "10.0.0.9:6001", "tcp://10.0.0.9:6001"),
        (None, "fd00::9", {}, "[fd00::9]:6001", "tcp://[fd00::9]:6001"),
        (None, None, {"bind": "0.0.0.0:1", "advertised_addr": "10.0.0.9:2"}, "0.0.0.0:1", "tcp://10.0.0.9:2"),
        (None, None, {"bind": "127.0.0.1:1"}, "127.0.0.1:1", "tcp://127.0.0.1:1"),
        (KNOWN, None, {"bind": "10.0.0.9:6001"}, "10.0.0.9:6001", "tcp://10.0.0.9:6001"),
        (KNOWN, "10.0.0.9", {}, "10.0.0.9:6001", "tcp://10.0.0.9:6001"),
        (KNOWN, "10.0.0.1", {}, "10.0.0.1:6001", "tcp://10.0.0.1:6001"),
    ],
)
def test_who_has_a_new_token_joins(known, towards, settings, bind, addr):
    plan = planned(known, towards, manager_url=URL, join_token="new", **settings)
    assert plan == LinkPlan(bind=ListenAddress.parse(bind), addr=addr, join=True)


def test_a_token_that_served_is_tried_again_where_the_address_changed():
    assert planned(KNOWN, bind="10.0.0.9:6001", manager_url=URL, join_token="old").join


@pytest.mark.parametrize(
    ("known", "settings", "words"),
    [
        (None, {"bind": "10.0.0.1:6001"}, "reached over the network"),
        (None, {"bind": "10.0.0.1:6001", "manager_url": URL}, "reached over the network"),
        (None, {"manager_url": URL}, "has joined no cluster"),
        (None, {"join_token": "t"}, "`agent.manager-url` is missing"),
        (KNOWN, {"join_token": "t"}, "`agent.manager-url` is missing"),
        (None, {"bind": "0.0.0.0:6001"}, "`agent.advertised-addr` is missing"),
        (None, {"bind": "10.0.0.1:0", "join_token": "t", "manager_url": URL}, "port that stays the same"),
        (
            KNOWN,
            {"bind": "10.0.0.2:6001"},
            "joined as i-1 at tcp://10.0.0.1:6001, and is i-1 at tcp://10.0.0.2",
        ),
    ],
)
def test_what_could_serve_nobody_or_everybody_does_not_start(known, settings, words):
    with pytest.raises(ConfigError) as caught:
        planned(known, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_name_needs_another_join():
    with pytest.raises(ConfigError, match=r"joined as i-1 .* and is i-2"):
        plan_link(AgentConfig(id="i-2"), KNOWN, towards_manager=None)


@pytest.mark.parametrize(
    ("bind", "loopback"),
    [
        ("127.0.0.1:6001", True),
        ("127.9.9.9:0", True),
        ("[::1]:6001", True),
        ("0.0.0.0:6001", False),
        ("[::]:6001", False),
        ("192.168.1.5:6001", False),
    ],
)
def test_loopback_is_recognised(bind, loopback):
    assert is_local_host(ListenAddress.parse(bind).host) is loopback


# ---------------------------------------------------------------- files


def test_keys_are_made_once_and_are_nobody_elses(tmp_path: Path):
    keys = own_keys(tmp_path)
    assert own_keys(tmp_path) == keys
    assert keys.secret not in repr(keys)
    store_membership(tmp_path, KNOWN)
    assert stat.S_IMODE((tmp_path / "link").stat().st_mode) == 0o700
    files = list((tmp_path / "link").iterdir())
    assert sorted(path.name for path in files) == ["cluster.json", "keys.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_membership_is_kept_and_replaced(tmp_path: Path):
    assert load_membership(tmp_path) is None
    own_keys(tmp_path)
    store_membership(tmp_path, LOCAL)
    store_membership(tmp_path, KNOWN)
    assert load_membership(tmp_path) == KNOWN


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"public": "a", "secret": "b"}', '{"public": 1}', "\xff"]
)
def test_damaged_files_are_named(tmp_path: Path, text: str):
    own_keys(tmp_path)
    store_membership(tmp_path, KNOWN)
    for name, read in (("keys.json", own_keys), ("cluster.json", load_membership)):
        (tmp_path / "link" / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=f"{name} is damaged"):
            read(tmp_path)


def test_keys_that_do_not_belong_together_are_damaged(tmp_path: Path):
    own_keys(tmp_path)
    path = tmp_path / "link" / "keys.json"
    path.write_text(json.dumps({"public": new_key_pair()[0], "secret": new_key_pair()[1]}))
    with pytest.raises(ConfigError, match="damaged"):
        own_keys(tmp_path)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path):
    (tmp_path / "link").mkdir()
    os.chmod(tmp_path / "link", 0o755)
    with pytest.raises(ConfigError, match="0700"):
        own_keys(tmp_path)
