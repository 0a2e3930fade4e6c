"""Calls on the wire: each comes back as itself, and wrong arguments are named."""

from uuid import UUID

import pytest

from backendai_mgr.wire import calls
from backendai_mgr.wire.callosum import FrameError, pack, unpack
from backendai_mgr.wire.files import LogPlace
from backendai_mgr.wire.rpc import KernelSpec, RunSpec

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
CALLS = [
    (calls.CreateKernel(spec=SPEC), 60),
    (calls.DestroyKernel(kernel_id=KERNEL, incarnation=1, reason="user-requested", epoch=3), 30),
    (calls.StartRun(kernel_id=KERNEL, incarnation=1, run_id="r", digest="d", spec=RunSpec(code="1")), 30),
    (calls.GetRun(kernel_id=KERNEL, run_id="r"), 15),
    (calls.ListRuns(kernel_id=KERNEL), 15),
    (calls.InterruptRun(kernel_id=KERNEL, run_id=None), 30),
    (calls.AnswerRun(kernel_id=KERNEL, run_id="r", offset=None, text="yes"), 15),
    (calls.Complete(kernel_id=KERNEL, code="pri", cursor=3), 15),
    (calls.ReadOutput(kernel_id=KERNEL, run_id="r", offset=7, max_bytes=10, wait=5.5), 20.5),
    (calls.PollRun(kernel_id=KERNEL, run_id="r", wait=2, max_bytes=10), 17),
    (calls.MakeReport(epoch=3), 5),
    (calls.ListFiles(kernel_id=KERNEL, path="a/\udcff"), 60),
    (calls.ReadFile(kernel_id=KERNEL, path="a", offset=5, max_bytes=10), 60),
    (calls.WriteFile(kernel_id=KERNEL, path="a", upload="u", offset=0, data=b"\0\xff", final=True), 60),
    (calls.ArchiveFile(kernel_id=KERNEL, path="", max_bytes=10), 60),
    (calls.ReadLog(kernel_id=KERNEL, before=LogPlace(run_id="r", offset=3), max_bytes=10), 15),
]


@pytest.mark.parametrize(("call", "timeout"), CALLS, ids=lambda value: getattr(value, "method", ""))
def test_every_call_comes_back_and_has_its_deadline(call, timeout):
    assert calls.from_wire(unpack(pack(calls.to_wire(call))), calls.CALLS[call.method]) == call
    assert call.timeout == timeout


def test_the_table_knows_every_call():
    assert {call.method for call, _ in CALLS} == set(calls.CALLS)


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
        ("max_bytes", calls.MAX_OUTPUT + 1),
        ("wait", -0.1),
        ("wait", float("nan")),
        ("wait", float("inf")),
        ("wait", None),
    ],
)
def test_a_wrong_argument_is_refused(member, wrong):
    with pytest.raises(FrameError):
        calls.from_wire(READ | {member: wrong}, calls.ReadOutput)


@pytest.mark.parametrize("member", READ)
def test_a_missing_argument_is_named(member):
    arguments = {key: value for key, value in READ.items() if key != member}
    with pytest.raises(FrameError, match=member):
        calls.from_wire(arguments, calls.ReadOutput)
