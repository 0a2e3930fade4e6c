"""What ran in a session can be read after its end, also from the next start of everything."""

from contextlib import closing
from pathlib import Path

import pytest

from .harness import Installation, Up, wait_until
from .http import Http

pytestmark = pytest.mark.system

CODE = "for n in range(20000): print(n)\nraise SystemExit(3)"
PRINTED = "".join(f"{n}\n" for n in range(20000))


def test_runs_outlive_their_session_and_the_system_until_their_time_is_over(
    installation: Installation, folder: Path
) -> None:
    with Up(installation, folder / "data") as up, closing(Http(up.said)) as http:
        session = http.call("POST", "/session", body={"name": "past", "image": "python"}).json()["sessionId"]
        run = f"/session/{session}/runs/r"
        body = {"mode": "query", "code": CODE}
        assert http.call("PUT", run, body=body).status_code == 201
        read(http, run)
        assert http.call("DELETE", "/session/past").status_code == 200
        wait_until(lambda: "is TERMINATED" in up.command("why", "past").stdout, 20, "its end is known")
        read(http, run)
        read(http, "/session/past/runs/r")  # the name is nobody else's
        assert http.call("PUT", run, body=body).status_code == 200
        assert http.call("PUT", run, body=body | {"code": "other"}).status_code == 404
        assert http.call("PUT", f"/session/{session}/runs/new", body=body).status_code == 404
    with Up(installation, folder / "data") as up, closing(Http(up.said)) as http:
        read(http, run)
        assert [each["run_id"] for each in listed(http, session)["runs"]] == ["r"]
        assert up.command("output", session, "r").stdout == PRINTED
        removed = up.command("runs", "rm", session, "r")
        assert removed.returncode == 0, removed.stderr
        assert http.call("GET", run).status_code == 404
        assert listed(http, session) == {"runs": [], "next": None}
    with (
        Up(installation, folder / "data", "--set", "agent.run-retention=0") as up,
        closing(Http(up.said)) as http,
    ):
        wait_until(
            lambda: http.call("GET", f"/session/{session}/runs").status_code == 404, 30, "they are gone"
        )
        gone = http.call("GET", run)
        assert (gone.status_code, "not kept any more" in gone.text) == (404, True)


def read(http: Http, run: str) -> None:
    """The run's output is all there."""
    offset, text = 0, ""
    while True:
        piece = http.call("GET", f"{run}/output?offset={offset}&wait=20").json()
        text += "".join(record["data"] for record in piece["records"])
        offset = piece["next_offset"]
        if piece["finished"]:
            break
    assert text == PRINTED
    assert (piece["state"], piece["exit_code"]) == ("finished", 3)


def listed(http: Http, session: str) -> dict[str, object]:
    found: dict[str, object] = http.call("GET", f"/session/{session}/runs").json()
    return found
