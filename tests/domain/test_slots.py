from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.slots import Slots, format_amount, parse_amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", 1),
        (2, 2),
        (0.5, Decimal("0.5")),
        ("64m", 64 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("10 kb", 10240),
        ("1_000", 1000),
        ("512 bytes", 512),
        ("1t", 1 << 40),
        ("inf", Decimal("Infinity")),
        ("Infinity", Decimal("Infinity")),
    ],
)
def test_amounts(text, amount):
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1x",
        "-1",
        "nan",
        True,
        "1 2",
        "g",
        "--1",
        "1ee",
        "0x10",
        "1e99999999",
        "1e-99999999",
        "9" * 99,
    ],
)
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="amount"):
        parse_amount(text)


amounts = st.decimals(min_value=0, max_value=10**18, allow_nan=False, places=3)
vectors = st.dictionaries(st.sampled_from(["cpu", "mem", "cuda.device"]), amounts).map(Slots)


@given(amounts)
def test_text_round_trip_without_scientific_notation(amount):
    text = format_amount(amount)
    assert "e" not in text.lower()
    assert parse_amount(text) == amount


@given(vectors, vectors, vectors)
def test_a_partial_order_that_addition_keeps(a, b, c):
    assert a <= a + b
    assert a + b == b + a
    assert (a + b) - b == a
    if a <= b and b <= a:
        assert a == b
        assert hash(a) == hash(b)
    if a <= b:
        assert a + c <= b + c
        assert a.lacking(b) == {}


@given(vectors, vectors)
def test_lacking_says_exactly_what_is_too_little(wanted, available):
    assert (wanted <= available) == (not wanted.lacking(available))
