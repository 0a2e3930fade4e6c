"""Files and the environment together: what counts, where it is from, and what is said of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.runtime.config import (
    ByteSize,
    ConfigError,
    HostPort,
    ListenAddress,
    Problem,
    Seconds,
    parse_toml,
)
from backendai_mgr.runtime.configfile import Foreign, Schema, Setting, lines_of, read, read_file
from backendai_mgr.runtime.configshow import HIDDEN, as_written, resolved, toml_value


@attrs.frozen(kw_only=True)
class Deep:
    where: Path
    times: int = 1


@attrs.frozen(kw_only=True)
class Side:
    words: tuple[str, ...] = ()
    levels: dict[str, Literal["A", "B"]] = attrs.Factory(dict)
    deep: Deep | None = None


@attrs.frozen(kw_only=True)
class Whole:
    name: str = "n"
    num_proc: int = 1
    ratio: float = 0.5
    flag: bool = False
    addr: HostPort = HostPort("localhost", 1)
    bind: ListenAddress = ListenAddress("localhost", 0)
    path: Path | None = None
    wait: Seconds = Seconds(1.0)
    size: ByteSize = ByteSize(1)
    secret: str = attrs.field(default="", repr=False)
    side: Side = Side()

    def __attrs_post_init__(self) -> None:
        if self.num_proc < 1:
            raise ValueError(f"num-proc must be 1 or more, not {self.num_proc}")
        if self.ratio < 0:
            raise ValueError("ratio must not be negative")


SCHEMA = Schema(
    file_name="whole.toml",
    main="whole",
    cls=Whole,
    elsewhere=frozenset({"other"}),
    foreign={
        ("old",): Foreign(" has no effect here: why"),
        ("whole", "loop"): Foreign(" has no effect here: why"),
        ("side", "kind"): Foreign("", refuses=lambda value: None if value == "x" else ": only x"),
    },
    moved={("whole", "room"): ("side", "words")},
    foreign_variables={"OLD_VARIABLE": " has no effect here: why"},
    contradictions=lambda config: (
        [Problem(("whole", "flag"), ": not with path")] if config.flag and config.path else []
    ),
)


def variables(**given: str) -> dict[str, str]:
    return {f"BACKENDAI_MGR__{name}": text for name, text in given.items()}


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("WHOLE__NAME", "plain", "name", "plain"),
        ("WHOLE__NAME", "12345", "name", "12345"),
        ("WHOLE__NAME", "true", "name", "true"),
        ("WHOLE__NAME", '"in quotes"', "name", "in quotes"),
        ("WHOLE__NAME", "1\nname = 2", "name", "1\nname = 2"),
        ("WHOLE__NUM_PROC", "4", "num_proc", 4),
        ("WHOLE__FLAG", "yes", "flag", True),
        ("WHOLE__ADDR", "db:5432", "addr", HostPort("db", 5432)),
        ("WHOLE__ADDR", '["db", 5432]', "addr", HostPort("db", 5432)),
        ("WHOLE__PATH", "/x", "path", Path("/x")),
        ("WHOLE__WAIT", "2m", "wait", 120.0),
        ("WHOLE__WAIT", "2", "wait", 2.0),
        ("WHOLE__SIZE", "2k", "size", 2048),
    ],
)
def test_a_variable_sets_any_key(name: str, text: str, key: str, value: object) -> None:
    assert getattr(read(SCHEMA, {}, environ=variables(**{name: text})).checked(), key) == value


def test_a_variable_sets_keys_of_tables_in_tables() -> None:
    environ = variables(
        SIDE__WORDS='["a", "b"]', SIDE__LEVELS='{x = "A"}', SIDE__DEEP__WHERE="/d", SIDE__DEEP__TIMES="3"
    )
    side = read(SCHEMA, {"side": {"words": ["file"]}}, environ=environ).checked().side
    assert side == Side(words=("a", "b"), levels={"x": "A"}, deep=Deep(where=Path("/d"), times=3))


def test_the_command_line_comes_before_the_environment_before_the_file_before_defaults() -> None:
    document = {"whole": {"name": "file", "num-proc": 2, "ratio": 0.1}}
    environ = variables(WHOLE__NAME="variable", WHOLE__NUM_PROC="3")
    option = Setting(("whole", "name"), "option", "--name")
    config = read(SCHEMA, document, environ=environ, given=[option]).checked()
    assert (config.name, config.num_proc, config.ratio, config.flag) == ("option", 3, 0.1, False)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            variables(WHOLE__NUM_PROC="x"),
            "`BACKENDAI_MGR__WHOLE__NUM_PROC`: expected a whole number, not 'x'.",
        ),
        (variables(WHOLE__NUM_PROC="0"), "`BACKENDAI_MGR__WHOLE__NUM_PROC` must be 1 or more, not 0."),
        (
            variables(SIDE__LEVELS='{x = "C"}'),
            "`BACKENDAI_MGR__SIDE__LEVELS`: expected one of A, B, not 'C'.",
        ),
        (
            variables(WHOLE__NUMPROC="1"),
            "`BACKENDAI_MGR__WHOLE__NUMPROC` names no key; the nearest is `BACKENDAI_MGR__WHOLE__NUM_PROC`.",
        ),
        (variables(XYZ="1"), "`BACKENDAI_MGR__XYZ` names no key."),
        (variables(WHOLE__NAME="\udcff"), "`BACKENDAI_MGR__WHOLE__NAME` is not UTF-8 text."),
    ],
)
def test_a_wrong_variable_is_named_itself(environ: Mapping[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(SCHEMA, {}, environ=environ).checked()
    assert str(refused.value) == sentence


def test_variables_of_the_other_file_are_none_of_its_business() -> None:
    assert read(SCHEMA, {}, environ=variables(OTHER__KEY="1")).checked() == Whole()


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "whole.toml"
    path.write_text(
        '[whole]\nnum-prc = 1\nnum-proc = 0\nratio = -1\naddr = "x"\n\n[side.deep]\ntimes = "x"\n\n[sied]\n'
    )
    assert read_file(SCHEMA, path, environ={}).problems == (
        f"{path}:2: `whole.num-prc` is not a known key; the nearest is `num-proc`.",
        f"{path}:3: `whole.num-proc` must be 1 or more, not 0.",
        f"{path}:4: `whole.ratio` must not be negative.",
        f"{path}:5: `whole.addr`: expected host:port, not 'x'.",
        f"{path}:7: `side.deep.where` is missing.",
        f"{path}:8: `side.deep.times`: expected a whole number, not 'x'.",
        f"{path}:10: `sied` is not a known table; the nearest is `side`.",
    )


def test_a_secret_of_the_wrong_kind_is_not_told() -> None:
    told = read(SCHEMA, {"whole": {"secret": 12345}}).problems
    assert told == ("`whole.secret`: expected text in quotes.",)


def test_what_contradicts_itself_is_told_unless_that_follows_from_a_mistake() -> None:
    assert read(SCHEMA, {"whole": {"flag": True, "path": "/x"}}).problems == ("`whole.flag`: not with path.",)
    told = read(SCHEMA, {"whole": {"flag": "maybe", "path": "/x"}}).problems
    assert told == ("`whole.flag`: expected yes or no, not 'maybe'.",)


def test_keys_of_another_program_are_told_of_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "whole.toml"
    path.write_text('[old]\nx = 1\n[old.y]\nz = 2\n[whole]\nloop = "u"\n[side]\nkind = "x"\n')
    reading = read_file(SCHEMA, path, environ={"OLD_VARIABLE": ""})
    assert reading.checked() == Whole()
    assert reading.warnings == (
        f"{path}:1: `old` has no effect here: why.",
        f"{path}:6: `whole.loop` has no effect here: why.",
        "`OLD_VARIABLE` has no effect here: why.",
    )


def test_a_foreign_value_that_would_be_missed_is_refused() -> None:
    assert read(SCHEMA, {"side": {"kind": "y"}}).problems == ("`side.kind`: only x.",)


def test_a_key_that_has_another_name_here_keeps_its_meaning() -> None:
    assert read(SCHEMA, {"whole": {"room": ["a"]}}).checked().side.words == ("a",)
    both = {"whole": {"room": ["a"]}, "side": {"words": ["b"]}}
    assert read(SCHEMA, both).checked().side.words == ("b",)


@pytest.mark.parametrize(
    "document", [{"whole": 1}, {"side": []}, {"side": {"deep": 1}}, {"whole": {"side": {}}}]
)
def test_what_is_no_table_is_refused_whatever_the_environment_says(document: dict[str, Any]) -> None:
    environ = variables(WHOLE__NAME="x", SIDE__WORDS="[]", SIDE__DEEP__TIMES="1")
    (problem, *_) = read(SCHEMA, document, environ=environ).problems
    assert "table" in problem


def test_lines_of_statements() -> None:
    text = (
        "# a comment\nfirst = 1\n[a]\n\nb = [\n  1,  # [x]\n]\nc.d = 2\n"
        "e = '''\n[f]\n'''\n[\"g.h\".\"i\"]\nk = {l = \"\u2028\", m = 1}\n"
    )
    assert lines_of(text) == {
        ("first",): 2,
        ("a",): 3,
        ("a", "b"): 5,
        ("a", "c"): 8,
        ("a", "c", "d"): 8,
        ("a", "e"): 9,
        ("g.h", "i"): 12,
        ("g.h", "i", "k"): 13,
        ("g.h", "i", "k", "l"): 13,
        ("g.h", "i", "k", "m"): 13,
    }


# ---------------------------------------------------------------- shown again

hosts = (
    st.from_regex(r"[a-z][a-z0-9.-]{0,9}", fullmatch=True) | st.ip_addresses().map(str) | st.text(min_size=1)
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
sides = st.builds(
    Side,
    words=st.lists(texts).map(tuple),
    levels=st.dictionaries(texts, st.sampled_from(["A", "B"])),
    deep=st.none() | st.builds(Deep, where=texts.map(lambda text: Path("/x") / text), times=st.integers()),
)
wholes = st.builds(
    Whole,
    name=texts,
    num_proc=st.integers(min_value=1),
    ratio=st.floats(min_value=0),
    flag=st.booleans(),
    addr=st.builds(HostPort, hosts, st.integers(1, 65535)),
    bind=st.builds(ListenAddress, hosts, st.integers(0, 65535)),
    path=st.none(),
    wait=st.floats(min_value=0, allow_infinity=False).map(Seconds),
    size=st.integers(min_value=0).map(ByteSize),
    secret=st.just(""),
    side=sides,
)


@given(wholes)
def test_what_is_shown_is_the_same_configuration_again(config: Whole) -> None:
    text = resolved(attrs.evolve(read(SCHEMA, {}), config=config))
    assert read(SCHEMA, parse_toml(text, "shown")).checked() == config


def test_what_is_shown_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "whole.toml"
    path.write_text('[whole]\nname = "x"\nsecret = "s3cret"\n[side]\n')
    reading = read_file(SCHEMA, path, environ=variables(WHOLE__RATIO="1"))
    lines = resolved(reading).splitlines()
    assert f'name = "x"  # {path}:2' in lines
    assert "ratio = 1.0  # BACKENDAI_MGR__WHOLE__RATIO" in lines
    assert "flag = false  # default" in lines
    assert "#path =  # default" in lines
    assert f'secret = "{HIDDEN}"  # {path}:3' in lines
    assert "words = []  # default" in lines
    assert "#[side.deep]  # not set" in lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            '[whole]\n# why\nsecret = "s3cret"  # x\nname="n"\n',
            f'[whole]\n# why\nsecret = "{HIDDEN}"\nname="n"\n',
        ),
        ("whole.secret = '''\ns3cret'''\n", f'whole = {{ secret = "{HIDDEN}" }}\n'),
        ('whole = {secret = "s3cret", ratio = 1.0}', f'whole = {{ secret = "{HIDDEN}", ratio = 1.0 }}\n'),
        ('[whole]\nsecret = ["s3cret"]\n', f'[whole]\nsecret = "{HIDDEN}"\n'),
        ('[other]\nsecret = "shown"', '[other]\nsecret = "shown"'),
        ("", ""),
    ],
)
def test_a_file_is_shown_as_it_is_but_for_secrets(text: str, shown: str) -> None:
    assert as_written(SCHEMA, text) == shown


@given(
    st.recursive(
        texts | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
    )
)
def test_values_survive_toml(value: object) -> None:
    assert parse_toml(f"v = {toml_value(value)}", "x") == {"v": value}
