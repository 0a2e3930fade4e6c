"""An agent's registry in a process of its own, for tests that kill it or run it as somebody else.

Usage: as module ``tests.agent.victim`` with DATA_DIR KERNEL_ID ACTION [UID]``
"""

import importlib
import os
import sys
from pathlib import Path
from uuid import UUID

import trio

from backendai_mgr.agent.images import packaged_manifests
from backendai_mgr.agent.sandbox import USER_UID

from .harness import PATIENCE, Site, destroy, processes_of, run, shims_of, until

WITNESS = "open('starts', 'a').write('x'); print('on')"
STRAY = "import subprocess; subprocess.Popen(['setsid', 'sleep', '1000'])"


async def create(site: Site, kernel_id: UUID) -> None:
    async with site.agent() as registry:
        await registry.create_kernel(site.spec(kernel_id=kernel_id))


async def create_warm(site: Site, kernel_id: UUID) -> None:
    site.pool_size = 1
    async with site.agent() as registry:
        await until(lambda: all(pool["ready"] for pool in registry.make_report().stats["pool"].values()))
        await registry.create_kernel(site.spec(kernel_id=kernel_id))


async def restart(site: Site, kernel_id: UUID) -> None:
    async with site.agent() as registry:
        await registry.create_kernel(site.spec(kernel_id=kernel_id))
        (site.scratch(site.spec(kernel_id=kernel_id)) / "work" / "kept").write_text("kept")
        await registry.create_kernel(site.spec(kernel_id=kernel_id, incarnation=2))


async def start_run(site: Site, kernel_id: UUID) -> None:
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        await registry.create_kernel(spec)
        await run(registry, spec, "r", WITNESS)


async def end(site: Site, kernel_id: UUID) -> None:
    async with site.agent() as registry:
        await registry.create_kernel(site.spec(kernel_id=kernel_id))
        await registry.destroy_kernel(kernel_id, 1, "user-requested")


async def end_wholly(site: Site, kernel_id: UUID) -> None:
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        await registry.create_kernel(spec)
        await run(registry, spec, "r", STRAY)
        await destroy(registry, site, spec)


async def whole_life(site: Site, kernel_id: UUID) -> None:
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        await registry.create_kernel(spec)
        out, _ = await run(
            registry, spec, "r", f"{STRAY}; import os; os.mkdir('closed', 0); print(os.getuid())"
        )
        assert out == f"{USER_UID}\n"
        assert set(registry.make_report().missing) <= {"limits"}
    async with site.agent() as registry:
        assert (await run(registry, spec, "s", "print(os.getpid() > 1)"))[0] == "True\n"
        await destroy(registry, site, spec)
    assert processes_of(kernel_id) == []
    assert shims_of(site.data_dir) == []


ACTIONS = {
    "create": create,
    "create-warm": create_warm,
    "restart": restart,
    "run": start_run,
    "end": end,
    "end-wholly": end_wholly,
    "whole-life": whole_life,
}


async def main(data_dir: str, kernel_id: str, action: str) -> None:
    with trio.fail_after(2 * PATIENCE):
        await ACTIONS[action](Site(Path(data_dir)), UUID(kernel_id))
    print("done")


if __name__ == "__main__":
    data_dir, kernel_id, action, *uid = sys.argv[1:]
    if uid:
        # Load what this account may not be able to read: modules come late, and ours may lie under /root.
        packaged_manifests()
        importlib.import_module("email.parser")
        os.setgroups([])
        os.setresgid(int(uid[0]), int(uid[0]), int(uid[0]))
        os.setresuid(int(uid[0]), int(uid[0]), int(uid[0]))
        if not os.access(os.path.realpath(sys.executable), os.X_OK):  # where only root reaches ours
            sys.executable = "/usr/bin/python3"
    trio.run(main, data_dir, kernel_id, action)
