import pytest

from backendai_mgr.db.agents import PgAgents
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.domain.status import Status
from backendai_mgr.services.ports import StaleEpoch
from tests.db.samples import AGENT, add_agent, insert_session


async def test_the_log_of_an_ended_kernel_is_kept_by_the_leases_holder_only(db):
    epoch = await add_agent(db)
    (ended,) = await insert_session(db, Status.TERMINATED)
    (running,) = await insert_session(db, Status.RUNNING, name="other-session")
    assert await PgSessions(db).stored_log(ended) is None
    with pytest.raises(StaleEpoch):
        await PgAgents(db).store_log(AGENT, epoch - 1, ended, b"not mine")
    await PgAgents(db).store_log(AGENT, epoch, ended, b"\x00\xff")
    await PgAgents(db).store_log(AGENT, epoch, running, b"too early")
    assert await PgSessions(db).stored_log(ended) == b"\x00\xff"
    assert await PgSessions(db).stored_log(running) is None
