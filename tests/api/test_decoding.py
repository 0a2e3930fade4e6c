"""Whatever a client sends, decoding yields parameters or says what is wrong, in words that can be sent."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_mgr.api.body import to_json
from backendai_mgr.api.decoding import LEGACY, QUERY, STRICT, decode, load_object
from backendai_mgr.api.models.runs import parse_code, parse_completion, parse_execute
from backendai_mgr.domain.errors import InvalidParameters

from .badinput.endpoints import CONFIG, ENDPOINTS

MODELS = sorted({e.model for e in ENDPOINTS if e.model}, key=lambda model: model.__name__)
NAMES = sorted({name for e in ENDPOINTS for name in e.kinds} | {"options", *CONFIG.members})
WORDS = ["query", "batch", "r1", "my-session", "interactive", "1", "true", "RUNNING", "2022-03-15T01:02:03Z"]

any_text = st.text(st.characters(codec=None), max_size=70)  # lone surrogates, too
names = st.sampled_from(NAMES) | any_text
texts = any_text | st.sampled_from(WORDS)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
objects = st.dictionaries(names, values, max_size=6)


def told(error: InvalidParameters) -> None:
    """The refusal can travel, and names at least one parameter."""
    assert error.data
    assert len(to_json(error.data).encode()) < 100_000


@settings(max_examples=200)
@given(st.sampled_from(MODELS), st.sampled_from([LEGACY, STRICT]), objects)
def test_any_object_is_decoded_or_refused(model, dialect, given_object):
    try:
        assert isinstance(decode(model, load_object(json.dumps(given_object).encode()), dialect), model)
    except InvalidParameters as error:
        told(error)


@settings(max_examples=200)
@given(st.sampled_from(MODELS), st.dictionaries(names, texts, max_size=4))
def test_any_query_is_decoded_or_refused(model, query):
    try:
        assert isinstance(decode(model, query, QUERY), model)
    except InvalidParameters as error:
        told(error)


@settings(max_examples=200)
@given(st.sampled_from([parse_execute, parse_code, parse_completion]), objects)
def test_any_object_is_code_or_refused(parse, given_object):
    try:
        parse(given_object, 1000)
    except InvalidParameters as error:
        told(error)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_refused(raw):
    for body in (raw, b'{"a": ' + raw + b"}", b'{"a": "' + raw + b'"}'):
        try:
            assert isinstance(load_object(body), dict)
        except InvalidParameters as error:
            told(error)
