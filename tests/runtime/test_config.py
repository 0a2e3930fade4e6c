"""Configuration files: what is accepted, and the sentence for what is not."""

from pathlib import Path
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.runtime.config import (
    ByteSize,
    ConfigError,
    HostPort,
    ListenAddress,
    Seconds,
    find_config,
    load_toml,
    parse_bool,
    parse_duration,
    parse_size,
    structure,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("localhost:80", HostPort("localhost", 80)),
        ("[::1]:8081", HostPort("::1", 8081)),
        (["10.0.0.1", 65535], HostPort("10.0.0.1", 65535)),
        ({"host": "db", "port": 5432}, HostPort("db", 5432)),
    ],
)
def test_an_address_has_three_spellings(value: object, expected: HostPort) -> None:
    assert HostPort.parse(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(
            "localhost",
            "localhost:",
            ":80",
            "h:99999",
            "h:0",
            "h:-1",
            "h:x",
            "h:\N{ARABIC-INDIC DIGIT THREE}",
        ),
        *(["h"], ["h", "80"], ["h", True], 80, None, {"host": "h"}, {"host": "h", "port": 80, "more": 1}),
    ],
)
def test_what_is_no_address_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        HostPort.parse(value)


def test_only_a_listening_address_may_have_port_0() -> None:
    assert ListenAddress.parse("127.0.0.1:0").port == 0
    with pytest.raises(ValueError, match="port"):
        HostPort("127.0.0.1", 0)


@given(
    st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True) | st.ip_addresses().map(str),
    st.integers(1, 65535),
)
def test_an_address_reads_what_it_writes(host: str, port: int) -> None:
    assert HostPort.parse(str(HostPort(host, port))) == HostPort(host, port)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("30", 30.0),
        ("0.5", 0.5),
        ("10m", 600.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        ("1w", 604800.0),
        ("3mo", 7776000.0),
        ("1yr", 31536000.0),
    ],
)
def test_durations_in_seconds(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value", [-1, "-1", "10s", "1.5mo", "1.5yr", "", "h", "1 h", True, None, float("inf")]
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"), [(0, 0), (65536, 65536), ("64k", 65536), ("1.5G", 1610612736), ("2m", 2097152)]
)
def test_sizes_in_bytes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [-1, 1.5, "64kb", "", "-1k", True, None])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(value)


@pytest.mark.parametrize("word", ["yes", "true", "1", "on", "y", "t", "YES", True, 1])
def test_words_for_true(word: object) -> None:
    assert parse_bool(word) is True


@pytest.mark.parametrize("word", ["no", "False", "0", "off", "n", "f", False, 0])
def test_words_for_false(word: object) -> None:
    assert parse_bool(word) is False


@pytest.mark.parametrize("word", ["", "maybe", 2, None, 1.0, []])
def test_no_truth_in_other_words(word: object) -> None:
    with pytest.raises(ValueError, match="yes or no"):
        parse_bool(word)


@attrs.frozen(kw_only=True)
class Inner:
    wait_time: Seconds = Seconds(1.0)
    kind: Literal["a", "b"] = "a"


@attrs.frozen(kw_only=True)
class Outer:
    name: str
    count: int = 1
    ratio: float = 0.5
    flag: bool = False
    path: Path | None = None
    addr: HostPort = HostPort("localhost", 1)
    size: ByteSize | None = None
    words: tuple[str, ...] = ()
    table: dict[str, int] = attrs.Factory(dict)
    inner: Inner = Inner()


def test_every_kind_of_value_is_read() -> None:
    assert structure(
        Outer,
        {
            "name": "n",
            "count": 2,
            "ratio": 1,
            "flag": "yes",
            "path": "/x",
            "addr": ["h", 2],
            "size": "1k",
            "words": ["a", "b"],
            "table": {"k": 1},
            "inner": {"wait-time": "1m", "kind": "b"},
        },
    ) == Outer(
        name="n",
        count=2,
        ratio=1.0,
        flag=True,
        path=Path("/x"),
        addr=HostPort("h", 2),
        size=ByteSize(1024),
        words=("a", "b"),
        table={"k": 1},
        inner=Inner(wait_time=Seconds(60.0), kind="b"),
    )


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({}, "`top.name` is missing"),
        ({"name": "n", "cuont": 1}, "`top.cuont` is not a known key"),
        ({"name": "n", "wait_time": 1}, "`top.wait_time` is not a known key"),
        ({"name": 5}, "`top.name`: expected text"),
        ({"name": "n", "count": "2"}, "`top.count`: expected a whole number"),
        ({"name": "n", "count": True}, "`top.count`: expected a whole number"),
        ({"name": "n", "ratio": "1"}, "`top.ratio`: expected a number"),
        ({"name": "n", "words": "a"}, "`top.words`: expected a list"),
        ({"name": "n", "words": ["a", 1]}, r"`top.words\[1\]`: expected text"),
        ({"name": "n", "table": {"k": "x"}}, "`top.table.k`: expected a whole number"),
        ({"name": "n", "inner": 1}, "`top.inner` must be a table"),
        ({"name": "n", "inner": {"wait-time": "10s"}}, "`top.inner.wait-time`: expected a duration"),
        ({"name": "n", "inner": {"kind": "c"}}, "`top.inner.kind`: expected one of a, b"),
    ],
)
def test_a_mistake_is_named_by_its_dotted_key(mapping: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}.*\\.$"):
        structure(Outer, mapping, "top")


def test_a_file_that_is_not_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "manager.toml"
    path.write_text("[manager]\nid = \n")
    with pytest.raises(ConfigError, match=rf"^{path} is not valid TOML: .*line 2"):
        load_toml(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manager.toml cannot be read: No such file or directory\.$"):
        load_toml(tmp_path / "manager.toml")
    (tmp_path / "bad.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_toml(tmp_path / "bad.toml")


def test_the_places_of_a_file_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    usual = home / ".config" / "backend.ai"
    here.mkdir()
    usual.mkdir(parents=True)
    monkeypatch.chdir(here)
    environ = {"HOME": str(home)}
    name = "test-only.toml"
    assert find_config(name, environ=environ) is None
    (usual / name).touch()
    assert find_config(name, environ=environ) == usual / name
    (here / name).touch()
    assert find_config(name, environ=environ) == here / name
    named = {**environ, "BACKEND_CONFIG_FILE": "/nowhere/x.toml"}
    assert find_config(name, environ=named) == Path("/nowhere/x.toml")
