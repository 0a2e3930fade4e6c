import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.errors import InvalidParameters
from backendai_mgr.domain.requests import granted_slots

KNOWN = {"cpu", "mem", "cuda.device"}
IMAGE = {"cpu": {"min": "1", "max": "8"}, "mem": {"min": "256m", "max": None}}


def grant(resources=None, opts=None, image=IMAGE, labels=None):
    return granted_slots(
        resources or {}, opts or {}, image_resources=image, labels=labels or {}, known=KNOWN
    ).to_text()


MIB = 1 << 20


@pytest.mark.parametrize(
    ("resources", "opts", "expected"),
    [
        ({}, {}, {"cpu": "1", "mem": str(320 * MIB)}),
        ({"cpu": 0, "mem": None}, {}, {"cpu": "1", "mem": str(320 * MIB)}),
        ({"cpu": "2", "mem": "1g"}, {}, {"cpu": "2", "mem": str(1024 * MIB)}),
        ({"mem": "1g"}, {"shmem": "512m"}, {"cpu": "1", "mem": str(1024 * MIB)}),
        ({"cuda.device": 1}, {}, {"cpu": "1", "mem": str(320 * MIB), "cuda.device": "1"}),
    ],
)
def test_granted(resources, opts, expected):
    assert grant(resources, opts) == expected


@pytest.mark.parametrize(
    ("resources", "opts", "field"),
    [
        ({"tpu": 1}, {}, "config.resources.tpu"),
        ({"cpu": "many"}, {}, "config.resources.cpu"),
        ({"cpu": [1]}, {}, "config.resources.cpu"),
        ({"cpu": -1}, {}, "config.resources.cpu"),
        ({"cpu": "inf"}, {}, "config.resources.cpu"),
        ({"cpu": 9}, {}, "config.resources.cpu"),
        ({"cpu": "0.5"}, {}, "config.resources.cpu"),
        ({"mem": "100m"}, {}, "config.resources.mem"),
        ({"mem": "1g"}, {"shmem": "1g"}, "config.resources.mem"),
        ({"mem": "1g"}, {"shmem": "much"}, "config.resource_opts.shmem"),
    ],
)
def test_refused_by_the_name_of_the_field(resources, opts, field):
    with pytest.raises(InvalidParameters) as caught:
        grant(resources, opts)
    assert list(caught.value.data) == [field]


def test_shared_memory_comes_from_the_label_when_not_asked():
    image = {"mem": {"min": "64m"}}
    labels = {"ai.backend.resource.preferred.shmem": "128m"}
    assert grant(image=image, labels=labels)["mem"] == str(192 * MIB)


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=5))))
def test_whatever_is_asked_is_granted_or_refused_by_name(resources):
    refused: dict[str, str] = {}
    try:
        assert {"cpu", "mem"} <= set(grant(resources))
    except InvalidParameters as refusal:
        refused = dict(refusal.data)
    assert all(field.startswith("config.") for field in refused)
