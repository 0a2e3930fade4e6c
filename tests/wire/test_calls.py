"""Calls on the wire: each comes back as itself, and wrong arguments are named."""

from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.wire import calls, filecalls
from backendai_mgr.wire.call import MAX_OUTPUT, from_wire, to_wire
from backendai_mgr.wire.callosum import FrameError, pack, unpack
from backendai_mgr.wire.files import Condition, LogPlace
from backendai_mgr.wire.rpc import KernelSpec, RunOrder, RunPlace, RunSpec

from .wrong import wrong_members

KERNEL = UUID(int=5)
SPEC = KernelSpec(
    kernel_id=KERNEL,
    session_id=KERNEL,
    incarnation=2,
    cluster_id="c",
    session_name="s",
    image="local/python:3.11",
    architecture="x86_64",
    slots={"cpu": "1"},
)
ORDER = RunOrder.of(1, RunSpec(code="1"))
CONDITION = Condition(match=["1-2-3"], unlike=["*"])
CALLS = [
    (calls.CreateKernel(spec=SPEC), 60),
    (calls.DestroyKernel(kernel_id=KERNEL, incarnation=1, reason="user-requested", epoch=3), 30),
    (calls.StartRun(kernel_id=KERNEL, run_id="r", order=ORDER), 30),
    (calls.GetRun(kernel_id=KERNEL, run_id="r"), 15),
    (calls.ListRuns(kernel_id=KERNEL), 15),
    (calls.ListRuns(kernel_id=KERNEL, limit=5, after=RunPlace(queued_at=1.5, run_id="r")), 15),
    (calls.AbandonRun(kernel_id=KERNEL, run_id="r", after=60), 15),
    (calls.DeleteRun(kernel_id=KERNEL, run_id="r"), 15),
    (calls.InterruptRun(kernel_id=KERNEL, run_id=None), 30),
    (calls.AnswerRun(kernel_id=KERNEL, run_id="r", offset=None, text="yes"), 15),
    (calls.TypeInput(kernel_id=KERNEL, run_id="r", writer="w", offset=7, data=b"ls\xff"), 15),
    (calls.ResizeTerminal(kernel_id=KERNEL, run_id="r", rows=24, columns=80), 15),
    (calls.StartService(kernel_id=KERNEL, service="http", port=8000, envs={"A": "b"}), 60),
    (calls.ShutdownService(kernel_id=KERNEL, service="http"), 30),
    (calls.Complete(kernel_id=KERNEL, code="pri", cursor=3), 15),
    (calls.ReadOutput(kernel_id=KERNEL, run_id="r", offset=7, max_bytes=10, wait=5.5), 20.5),
    (calls.PollRun(kernel_id=KERNEL, run_id="r", wait=2, max_bytes=10), 17),
    (filecalls.DropUpload(kernel_id=KERNEL, path="f", upload="u"), 60),
    (filecalls.PatchFile(kernel_id=KERNEL, path="f", offset=None, data=b"x", condition=CONDITION), 60),
    (filecalls.MoveFile(kernel_id=KERNEL, path="f", to="g", replace=True), 60),
    (filecalls.RemoveFile(kernel_id=KERNEL, path="f", recursive=True, condition=CONDITION), 60),
    (calls.PollRun(kernel_id=KERNEL, run_id="r", wait=2, max_bytes=10, order=ORDER), 32),
    (calls.MakeReport(epoch=3), 5),
    (filecalls.ListFiles(kernel_id=KERNEL, path="a/\udcff"), 60),
    (filecalls.ReadFile(kernel_id=KERNEL, path="a", offset=5, max_bytes=10), 60),
    (filecalls.WriteFile(kernel_id=KERNEL, path="a", upload="u", offset=0, data=b"\0\xff", final=True), 60),
    (filecalls.ArchiveFile(kernel_id=KERNEL, path="", max_bytes=10), 60),
    (filecalls.ReadLog(kernel_id=KERNEL, before=LogPlace(run_id="r", offset=3), max_bytes=10), 15),
]


MEMBERS = {field.name for call, _ in CALLS for field in attrs.fields(type(call))}


@pytest.mark.parametrize(("call", "timeout"), CALLS, ids=lambda value: getattr(value, "method", ""))
def test_every_call_comes_back_and_has_its_deadline(call, timeout):
    assert from_wire(unpack(pack(to_wire(call))), calls.CALLS[call.method]) == call
    assert call.timeout == timeout


def test_the_table_knows_every_call():
    assert {call.method for call, _ in CALLS} == set(calls.CALLS)


WRONG = {
    f"{call.method}: {name}": (type(call), arguments)
    for call, _ in CALLS
    for name, arguments in wrong_members(type(call), to_wire(call))
}


@pytest.mark.parametrize(("kind", "arguments"), WRONG.values(), ids=WRONG)
def test_a_wrong_member_is_refused(kind, arguments):
    with pytest.raises(FrameError):
        from_wire(unpack(pack(arguments)), kind)


wild = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=9) | st.sampled_from([str(KERNEL), "query", "r"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=9) | st.integers() | st.sampled_from([*MEMBERS]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from([*calls.CALLS.values()]), st.dictionaries(st.sampled_from([*MEMBERS]), wild) | wild)
def test_any_value_is_a_call_or_refused(kind, value):
    try:
        call = from_wire(unpack(pack(value)), kind)
    except FrameError:
        return
    assert from_wire(to_wire(call), kind) == call


READ = {"kernel_id": str(KERNEL), "run_id": "r", "offset": 0, "max_bytes": 1, "wait": 0}


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("kernel_id", "5"),
        ("kernel_id", 5),
        ("run_id", "a/b"),
        ("run_id", "a" * 65),
        ("run_id", "r\n"),
        ("run_id", ""),
        ("offset", -1),
        ("offset", "0"),
        ("offset", True),
        ("max_bytes", 0),
        ("max_bytes", MAX_OUTPUT + 1),
        ("wait", -0.1),
        ("wait", float("nan")),
        ("wait", float("inf")),
        ("wait", None),
    ],
)
def test_a_wrong_argument_is_refused(member, wrong):
    with pytest.raises(FrameError):
        from_wire(READ | {member: wrong}, calls.ReadOutput)


@pytest.mark.parametrize("member", READ)
def test_a_missing_argument_is_named(member):
    arguments = {key: value for key, value in READ.items() if key != member}
    with pytest.raises(FrameError, match=member):
        from_wire(arguments, calls.ReadOutput)
