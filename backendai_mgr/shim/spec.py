"""``spec.json`` in a kernel's scratch folder: what the back end tells the shim.  A JSON object of

kernel_id, incarnation   of the kernel; both null for one that is made before anybody asked for it
socket                   absolute path, under 100 bytes
argv, env, cwd           of the guest; see `guest` for the arguments that are appended
uid, gid                 account of the kernel, or null; with `enclosed` the guest changes to it,
                         else the shim does before that
files, join              descriptors (as text) and the files that are opened there; control groups
query_line               null where there is an interpreter; else the command line that takes the code of
                         a query on its standard input, or "" for none
setup                    env and limits (rlimits by name) of what runs in the kernel; null until
                         ``assign`` tells that the file has been replaced
mark                     NAME=value in the guest's environment, by which its strays are found
oom_counter              null, or path and key of the line that counts kills for want of memory
leash                    seconds without any client after which kernel and shim end (default 3600)
limits                   run_log_bytes (64 MiB), exec_grace (5.0 s from a run's limit to the kill),
                         complete (3.0 s for one completion)
failpoints               specification of crash points, or null
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from backendai_mgr.shim.arbiter import GRACE
from backendai_mgr.shim.guest import Command
from backendai_mgr.shim.runlog import CAP_BYTES

FILE = "spec.json"
LEASH = 3600.0
COMPLETE_LIMIT = 3.0


class KernelIdentity(NamedTuple):
    kernel_id: str
    incarnation: int


class Setup(NamedTuple):
    """What a ready kernel is given before its first run; `limits` are rlimits by name."""

    env: dict[str, str]
    limits: dict[str, int]


class Spec(NamedTuple):
    identity: KernelIdentity
    socket: str
    command: Command
    setup: Setup | None
    query_line: str | None
    mark: str
    oom_counter: tuple[str, str] | None
    leash: float
    run_log_bytes: int
    exec_grace: float
    complete_limit: float
    failpoints: str


def read_spec() -> Spec:
    """Raises OSError, KeyError, TypeError or ValueError for a spec that cannot be used."""
    with open(FILE, "rb") as file:
        raw = json.loads(file.read())
    limits = raw.get("limits") or {}
    leash = raw.get("leash")
    if len(os.fsencode(raw["socket"])) >= 100:
        raise ValueError("the socket path is too long")
    command = Command(
        argv=list(raw["argv"]),
        env=dict(raw["env"]),
        cwd=raw["cwd"],
        uid=raw.get("uid"),
        gid=raw.get("gid"),
        enclosed=bool(raw.get("enclosed")),
        files={int(place): path for place, path in (raw.get("files") or {}).items()},
        join=list(raw.get("join") or ()),
    )
    counter = raw.get("oom_counter")
    return Spec(
        identity=KernelIdentity(raw["kernel_id"] or "", int(raw["incarnation"] or 0)),
        socket=raw["socket"],
        command=command,
        setup=None if raw["setup"] is None else Setup(**raw["setup"]),
        query_line=raw.get("query_line"),
        mark=raw.get("mark") or "",
        oom_counter=None if counter is None else (str(counter[0]), str(counter[1])),
        leash=LEASH if leash is None else float(leash),
        run_log_bytes=int(limits.get("run_log_bytes", CAP_BYTES)),
        exec_grace=float(limits.get("exec_grace", GRACE)),
        complete_limit=float(limits.get("complete", COMPLETE_LIMIT)),
        failpoints=raw.get("failpoints") or "",
    )
