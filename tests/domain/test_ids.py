import pytest

from backendai_mgr.domain.ids import is_run_id, is_session_name, parse_uuid


@pytest.mark.parametrize("name", ["abcd", "a.b-c", "_run_", "A1_2", "x" * 64, "1234"])
def test_names_that_may_name_a_session(name):
    assert is_session_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "abc",
        "x" * 65,
        "-abcd",
        "abcd-",
        ".abcd",
        "ab cd",
        "ab/cd",
        "äbcd",
        "abcd\n",
        "from-template",
        "٣٣٣٣",
    ],
)
def test_names_that_may_not(name):
    assert not is_session_name(name)


@pytest.mark.parametrize("run_id", ["a", "0", "..", "a-b_c.d", "x" * 64])
def test_run_ids(run_id):
    assert is_run_id(run_id)


@pytest.mark.parametrize("run_id", ["", "x" * 65, "a b", "a/b", "ä", "a\n"])
def test_what_is_no_run_id(run_id):
    assert not is_run_id(run_id)


def test_a_uuid_is_known_in_full_only():
    text = "12345678-1234-5678-1234-567812345678"
    assert str(parse_uuid(text)) == text
    assert parse_uuid(text.replace("-", "")) == parse_uuid(text)
    assert parse_uuid(text[:-1]) is None
    assert parse_uuid("g" * 32) is None
    assert parse_uuid("{" + text[:-2] + "}") is None
