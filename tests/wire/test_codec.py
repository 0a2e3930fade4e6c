from uuid import UUID

import attrs
import msgpack
import pytest
from cattrs import BaseValidationError

from backendai_mgr.domain.status import KernelState
from backendai_mgr.wire.codec import make_converter, wire

NOBODY = UUID(int=0)


@attrs.frozen(kw_only=True)
class Inner:
    word: str = ""


@attrs.frozen(kw_only=True)
class Sample:
    text: str = ""
    number: int = 0
    real: float = 0.0
    flag: bool = False
    raw: bytes = b""
    id: UUID = NOBODY
    state: KernelState = KernelState.RUNNING
    words: dict[str, str] = attrs.Factory(dict)
    inner: Inner | None = None


def test_round_trip_keeps_types():
    sample = Sample(text="x", number=1, real=1.5, flag=True, raw=b"y", id=UUID(int=5), words={"a": "b"})
    again = wire.structure(msgpack.unpackb(msgpack.packb(wire.unstructure(sample))), Sample)
    assert again == sample
    assert again.state is KernelState.RUNNING


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": 5},
        {"number": "5"},
        {"number": True},
        {"number": 1.0},
        {"real": "1"},
        {"flag": 1},
        {"flag": "true"},
        {"raw": "text"},
        {"id": 5},
        {"id": "no"},
        {"state": "unheard-of"},
        {"words": {"a": 1}},
        {"words": []},
        {"inner": []},
        {"inner": "text"},
    ],
)
def test_nothing_is_coerced(wrong):
    with pytest.raises(BaseValidationError):
        wire.structure(wrong, Sample)


def test_whole_numbers_are_floats_too():
    assert wire.structure({"real": 2}, Sample).real == 2.0


def test_unknown_members_are_let_through_unless_forbidden():
    assert wire.structure({"text": "x", "new": 1}, Sample) == Sample(text="x")
    with pytest.raises(BaseValidationError):
        make_converter(forbid_extra_keys=True).structure({"new": 1}, Sample)
