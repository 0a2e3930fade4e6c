"""`start-server`: several workers, a PostgreSQL that is given, an agent of its own."""

import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from .cluster import Cluster, Service, cluster
from .harness import Installation, wait_until
from .http import Http
from .runs import Runs

pytestmark = [pytest.mark.system, pytest.mark.deployment]

#: Prints while the test does its worst. The file counts its starts.
PROGRAM = """
import time
open('starts', 'a').write('x')
for i in range(40):
    print(i)
    time.sleep(0.1)
"""
PRINTED = "".join(f"{i}\n" for i in range(40))


@pytest.fixture(scope="module")
def site(installation: Installation) -> Iterator[Cluster]:
    with cluster(installation) as site, site.agent():
        yield site


@pytest.fixture
def server(site: Cluster) -> Iterator[Service]:
    site.configure()
    with site.server() as server:
        yield server


def ready_again(server: Service) -> None:
    server.hear("RELOADING=1")
    server.hear("READY=1")


def test_two_workers_serve_one_cluster(site: Cluster, server: Service) -> None:
    one, other = sorted(site.workers())
    with site.http(one) as first, site.http(other) as second:
        with Runs.in_new_session(first, "shared") as runs:
            # What one has made the other knows, by name, and runs code there.
            seen = Runs(second, runs.name, runs.session_id)
            assert second.call("GET", f"/session/{runs.name}").json()["status"] == "RUNNING"
            assert seen.run("memory = 6 * 7; print(memory)") == ("42\n", 0)
            assert runs.run("print(memory)") == ("42\n", 0)
            # A run started over one streams over the other: one of them is not the agent's keeper.
            for starter, reader in ((runs, seen), (seen, runs)):
                url = starter.start("for i in range(1000): print(i)")
                assert reader.follow(url) == ("".join(f"{i}\n" for i in range(1000)), 0)
            assert second.call("PATCH", f"/session/{runs.name}").status_code == 204
            assert runs.run("print('memory' in globals())") == ("False\n", 0)
        assert second.call("GET", f"/session/{runs.session_id}").status_code == 404
        # They never both keep the agent.
        assert site.holder() in (one, other)
        # Either tells the figures of both.
        before = requests(first)
        for http in (first, second, second):
            http.client.get("/livez")
        # A request is counted when its reply has gone.
        wait_until(lambda: requests(first) - before == requests(second) - before == 3, 5, "they are counted")


def requests(http: Http) -> float:
    families = text_string_to_metric_families(http.client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    of_livez = [s for s in samples if s.name.endswith("requests_total") and s.labels["route"] == "/livez"]
    return sum(sample.value for sample in of_livez)


def test_a_worker_that_stands_still_and_dies_takes_nothing_along(site: Cluster, server: Service) -> None:
    holder = site.holder()
    pid, epoch = site.workers()[holder], site.epoch()
    (other,) = site.workers().keys() - {holder}
    with site.http(other) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: site.holder() == other, 20, "the other worker keeps the agent")
        assert site.epoch() > epoch
        os.kill(pid, signal.SIGKILL)
        assert runs.follow(url) == (PRINTED, 0)
        assert runs.run("print(memory, open('starts').read())") == ("42 x\n", 0)
        # The one that was killed is back under its name, and sessions start over it.
        wait_until(lambda: site.workers().get(holder, pid) != pid, 20, "it is started again")
        with site.http(holder) as again, Runs.in_new_session(again, "new") as new:
            assert new.run("print(1 + 1)") == ("2\n", 0)


def test_a_reload_replaces_the_workers_while_runs_go_on(site: Cluster, server: Service) -> None:
    before = site.workers()
    with site.http() as http:
        name, session_id = started(http)
    with site.http() as http:
        runs = Runs(http, name, session_id)
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
    site.configure(num_proc=0)
    server.signal(signal.SIGHUP)
    ready_again(server)
    assert site.workers() == before
    (line,) = [line for line in server.log.read_text().splitlines() if "not reloaded" in line]
    assert "`manager.num-proc`: 1 to 1024, not 0" in line
    site.configure(num_proc=3)
    server.signal(signal.SIGHUP)
    # Whoever asks meanwhile is answered.
    while len(after := site.workers()) != 3 or after.items() & before.items():
        assert httpx.get(f"{site.endpoint}/livez").status_code == 200
    ready_again(server)
    with site.http() as http:
        runs = Runs(http, name, session_id)
        assert runs.follow(url) == (PRINTED, 0)
        assert runs.run("print(memory, open('starts').read())") == ("42 x\n", 0)
        assert http.call("DELETE", f"/session/{session_id}").status_code == 200
    assert site.holder() in after


def started(http: Http) -> tuple[str, str]:
    """A session of a name of its own."""
    name = f"kept-{os.urandom(4).hex()}"
    config = {"resources": {"cpu": 1, "mem": "192m"}}
    made = http.call("POST", "/session", body={"name": name, "image": "python", "config": config})
    assert made.json()["status"] == "RUNNING", made.text
    return name, made.json()["sessionId"]


def test_a_stop_leaves_sessions_to_the_next_server(site: Cluster, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    site.configure(pid_file=str(pid_file))
    with site.server() as server:
        assert pid_file.read_text() == f"{server.process.pid}\n"
        with site.http() as http:
            name, session_id = started(http)
            Runs(http, name, session_id).run("memory = 42")
        workers = site.workers()
        assert server.stop() == 0
    assert not pid_file.exists()
    assert not [pid for pid in workers.values() if Path(f"/proc/{pid}").exists()]
    assert site.holder() == ""
    with site.server(), site.http() as http:
        assert Runs(http, name, session_id).run("print(memory)") == ("42\n", 0)
        http.call("DELETE", f"/session/{session_id}")


def test_a_reload_brings_new_certificates_and_refuses_bad_ones(site: Cluster, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew() -> str:
        """The new certificate as PEM, without its chain."""
        issued = authority.issue_cert("127.0.0.1")
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return issued.cert_chain_pems[0].bytes().decode()

    def shown() -> str:
        return ssl.get_server_certificate(address)

    first = renew()
    site.configure(ssl_enabled=True, ssl_cert=str(certificate), ssl_privkey=str(key))
    arguments = ("start-server", "--config", str(site.config))
    with Service(site.installation, site.folder, "tls", *arguments) as server:
        host, _, port = server.hear("READY=1")["STATUS"].partition(" ")[0].rpartition(":")
        address = (host, int(port))
        assert shown() == first
        key.write_text("no key")
        server.signal(signal.SIGHUP)
        ready_again(server)
        assert "not reloaded" in server.log.read_text()
        assert shown() == first
        second = renew()
        server.signal(signal.SIGHUP)
        ready_again(server)
        assert second != first
        assert shown() == second
        assert server.stop() == 0


def test_workers_end_with_their_parent(site: Cluster) -> None:
    site.configure()
    with site.server() as server:
        workers = site.workers()
        server.kill()
        gone = 15
        wait_until(lambda: not [p for p in workers.values() if Path(f"/proc/{p}").exists()], gone, "they go")
