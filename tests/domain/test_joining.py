"""Join tokens, keys and addresses: who may join, and in whose place."""

from datetime import UTC, datetime, timedelta

import attrs
import pytest
import zmq
import zmq.utils.z85
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.addresses import is_local_host, leads_off_loopback
from backendai_mgr.domain.errors import Conflict, Forbidden, InvalidParameters
from backendai_mgr.domain.joining import (
    JoinRefused,
    JoinRequest,
    KeyPair,
    KnownAgent,
    StoredToken,
    TokenText,
    check_address,
    check_agent_id,
    check_architecture,
    check_key,
    check_origin,
    check_transport,
    decide,
)
from backendai_mgr.domain.status import AgentStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY, OTHER_KEY = "k" * 40, "o" * 40
TOKEN = TokenText.make(b"\1" * 6, b"\2" * 24)
STORED = StoredToken(
    id=TOKEN.id, digest=TOKEN.digest(), scaling_group="default", expires_at=NOW + timedelta(hours=1), uses=1
)
REQUEST = JoinRequest(id="i-1", addr="tcp://10.0.0.1:6001", public_key=KEY, architecture="x86_64")


def agent(**changes) -> KnownAgent:
    """The one that the request is from, as it is known after its first join with the token."""
    known = KnownAgent(id="i-1", status=AgentStatus.LOST, public_key=KEY, joined_with=TOKEN.id)
    return attrs.evolve(known, **changes)


USED_UP = attrs.evolve(STORED, uses=0)
ALIVE, LOST = AgentStatus.ALIVE, AgentStatus.LOST


@pytest.mark.parametrize(
    ("stored", "others", "outcome"),
    [
        (STORED, [], "new"),
        (STORED, [agent()], "repeated"),
        (USED_UP, [agent()], "repeated"),
        (USED_UP, [agent(status=ALIVE)], "repeated"),
        # Another token: the same agent joins anew.
        (STORED, [agent(joined_with="other")], "new"),
        (STORED, [agent(joined_with="other", status=ALIVE)], "new"),
        # Another key takes the place of one that is gone, also of one without a key.
        (STORED, [agent(public_key=OTHER_KEY)], "new"),
        (STORED, [agent(public_key=OTHER_KEY, status=AgentStatus.TERMINATED)], "new"),
        (STORED, [agent(public_key=None, joined_with=None)], "new"),
        # The same machine under another name.
        (STORED, [agent(id="i-0")], "new"),
        (STORED, [agent(id="i-0", status=AgentStatus.TERMINATED)], "new"),
    ],
)
def test_who_may_join(stored, others, outcome):
    assert decide(TOKEN, stored, REQUEST, others, NOW) == outcome


@pytest.mark.parametrize(
    ("stored", "others", "reason"),
    [
        (None, [], "no such token"),
        (attrs.evolve(STORED, digest="0" * 64), [], "no such token"),
        (attrs.evolve(STORED, expires_at=NOW), [], "expired"),
        (attrs.evolve(STORED, expires_at=NOW), [agent()], "expired"),
        (USED_UP, [], "used up"),
        (USED_UP, [agent(public_key=OTHER_KEY)], "used up"),
        (USED_UP, [agent(joined_with="other")], "used up"),
        (USED_UP, [agent(public_key=OTHER_KEY, status=ALIVE)], "used up"),
        (USED_UP, [agent(id="i-0")], "used up"),
    ],
)
def test_what_is_wrong_with_a_token_is_for_the_log_alone(stored, others, reason):
    with pytest.raises(JoinRefused) as caught:
        decide(TOKEN, stored, REQUEST, others, NOW)
    assert reason in caught.value.reason
    assert (caught.value.message, caught.value.data) == (JoinRefused("x").message, None)
    with pytest.raises(JoinRefused):
        decide(None, stored, REQUEST, others, NOW)


@pytest.mark.parametrize("status", sorted(set(AgentStatus) - {LOST, AgentStatus.TERMINATED}))
@pytest.mark.parametrize(
    ("known", "field"),
    [
        (agent(public_key=OTHER_KEY), "id"),
        (agent(public_key=None), "id"),
        (agent(public_key=OTHER_KEY, joined_with="other"), "id"),
        (agent(id="i-0"), "public_key"),
    ],
)
def test_the_place_of_an_agent_that_is_there_is_not_given_away(known, field, status):
    with pytest.raises(Conflict) as caught:
        decide(TOKEN, STORED, REQUEST, [attrs.evolve(known, status=status)], NOW)
    assert list(caught.value.data) == [field]


keys = st.sampled_from([KEY, OTHER_KEY])
known_agents = st.builds(
    KnownAgent,
    id=st.sampled_from(["i-1", "i-0"]),
    status=st.sampled_from(AgentStatus),
    public_key=st.none() | keys,
    joined_with=st.sampled_from([None, TOKEN.id, "other"]),
)


@given(
    secret=st.sampled_from([b"\2" * 24, b"\3" * 24]),
    uses=st.integers(0, 2),
    age=st.integers(-7200, 7200),
    others=st.lists(known_agents, max_size=2, unique_by=lambda known: known.id),
)
def test_nobody_joins_without_the_secret_in_time_and_no_use_is_taken_twice(secret, uses, age, others):
    given_token = TokenText.make(b"\1" * 6, secret)
    stored = attrs.evolve(STORED, uses=uses, expires_at=NOW + timedelta(seconds=age))
    try:
        outcome = decide(given_token, stored, REQUEST, others, NOW)
    except (JoinRefused, Conflict):
        return
    assert secret == b"\2" * 24
    assert age > 0
    same = [known for known in others if known.id == "i-1"]
    assert (outcome == "repeated") == any(
        known.public_key == KEY and known.joined_with == TOKEN.id for known in same
    )
    assert outcome == "repeated" or uses > 0
    if outcome == "new":
        assert all(
            known.status in (LOST, AgentStatus.TERMINATED) or (known.id, known.public_key) == ("i-1", KEY)
            for known in others
        )


@given(st.binary(min_size=6, max_size=6), st.binary(min_size=24, max_size=24))
def test_a_tokens_text_says_it_all_and_its_repr_does_not(token_id, secret):
    token = TokenText.make(token_id, secret)
    assert TokenText.parse(str(token)) == token
    assert secret.hex() not in repr(token) + token.digest()


@pytest.mark.parametrize("text", ["", "bmj", "bmj--", str(TOKEN)[:-1], str(TOKEN) + "0", str(TOKEN) + "\n",
                                  str(TOKEN).upper(), str(TOKEN).replace("0", "\u0660")])  # fmt: skip
def test_what_is_no_token(text):
    assert TokenText.parse(text) is None


def test_secrets_do_not_show():
    assert "s" * 40 not in repr(KeyPair(public=KEY, secret="s" * 40))
    assert TOKEN.digest() not in repr(STORED)


@given(st.binary(min_size=32, max_size=32))
def test_every_32_bytes_are_a_key(raw):
    check_key(zmq.utils.z85.encode(raw).decode())


@given(st.text(alphabet=[*map(chr, range(33, 127))], min_size=40, max_size=40) | st.text(max_size=50))
def test_only_what_libzmq_takes_as_a_key_is_one(text):
    try:
        check_key(text)
    except ValueError:
        return
    context = zmq.Context.instance()
    with context.socket(zmq.DEALER) as socket:
        socket.curve_serverkey = text.encode()


@pytest.mark.parametrize("text", ["", "k" * 39, "k" * 41, "ü" * 40, "#" * 40, "k" * 39 + "\n"])
def test_what_is_no_key(text):
    with pytest.raises(ValueError, match="40 characters of Z85"):
        check_key(text)


@pytest.mark.parametrize("addr", ["tcp://10.0.0.1:6001", "tcp://127.0.0.1:1", "tcp://[fd00::1]:65535"])
def test_addresses_that_managers_can_dial(addr):
    check_address(addr)


@pytest.mark.parametrize(
    "addr",
    [
        "", "10.0.0.1:6001", "tcp://10.0.0.1", "tcp://10.0.0.1:0", "tcp://10.0.0.1:65536", "tcp://node:6001",
        "tcp://10.0.0.256:6001", "tcp://0.0.0.0:6001", "tcp://[::]:6001", "tcp://224.0.0.1:6001",
        "tcp://10.0.0.1:6001;tcp://x:1", "ipc:///tmp/x", "tcp://10.0.0.1:6001\n", "tcp://[10.0.0.1:6001",
        "tcp://eth0;10.0.0.1:6001", "tcp://[fe80::1%eth0]:1", "tcp://10.0.0.1:\u0661",
    ],
)  # fmt: skip
def test_addresses_that_they_cannot(addr):
    with pytest.raises(ValueError, match="must be"):
        check_address(addr)


@pytest.mark.parametrize("text", ["", ".a", "a b", "a" * 65, "ä", "a\n"])
def test_ids_and_architectures(text):
    with pytest.raises(ValueError, match="must be"):
        check_agent_id(text)
    with pytest.raises(ValueError, match="must be"):
        check_architecture(text)
    check_agent_id("i-node.01_a")
    check_architecture("aarch64")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "localhost"])
def test_this_machine(host):
    assert is_local_host(host)
    check_transport("http", host)
    check_origin("tcp://127.0.0.1:6001", host)


@pytest.mark.parametrize(
    "host", [None, "", "10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "0.0.0.0", "example.com"]
)
def test_other_machines(host):
    assert not is_local_host(host)
    check_transport("https", host)
    with pytest.raises(Forbidden):
        check_transport("http", host)
    check_origin("tcp://10.0.0.1:6001", host)
    with pytest.raises(InvalidParameters) as caught:
        check_origin("tcp://127.0.0.1:6001", host)
    assert list(caught.value.data) == ["addr"]


@pytest.mark.parametrize(
    ("addr", "off"),
    [
        ("tcp://127.0.0.1:6001", False),
        ("tcp://[::1]:6001", False),
        ("tcp://localhost:6001", False),
        ("ipc:///run/agent", False),
        ("nonsense", False),
        ("tcp://10.0.0.1:6001", True),
        ("tcp://[fd00::1]:6001", True),
        ("tcp://node01:6001", True),
        ("tcp://127.0.0.1.example.com:6001", True),
        ("tcp://", True),
    ],
)
def test_what_is_on_the_network(addr, off):
    assert leads_off_loopback(addr) is off
