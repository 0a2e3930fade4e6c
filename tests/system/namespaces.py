"""Machines that are network namespaces of this one, joined by a cable; and a tap to listen to what passes."""

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from .harness import Installation, wait_until

#: Copies between two TCP ends, and every byte into a file.
TAP = """
import socket, sys, threading
where, port, to, file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), open(sys.argv[4], "ab", buffering=0)
listener = socket.create_server((where, port))
def copy(source, target):
    try:
        while data := source.recv(65536):
            file.write(data)
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
print("listening", flush=True)
while True:
    near, _ = listener.accept()
    try:
        far = socket.create_connection((where, to))
    except OSError:
        near.close()
        continue
    for pair in ((near, far), (far, near)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@attrs.frozen
class Machine:
    """A network namespace, and its address on the cable."""

    name: str
    address: str

    @property
    def before(self) -> tuple[str, ...]:
        # Not `ip netns exec`: that mounts /sys anew, without the control groups.
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def installation(self) -> Installation:
        return Installation(before=self.before)

    def python(self, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        """A Python process of the tests' own interpreter there."""
        command = [*self.before, sys.executable, *arguments]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]

    @contextlib.contextmanager
    def tap(self, port: int, to: int, file: Path) -> Iterator[None]:
        """Pass on what comes to *port* to another one, and write all that passes either way into *file*."""
        with self.python("-c", TAP, self.address, str(port), str(to), str(file)) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "listening\n"
                yield
            finally:
                process.kill()


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces with a cable between them, gone at the end with all that is in them."""
    tag = secrets.token_hex(3)
    machines = (Machine(f"bm-{tag}-a", "10.213.0.1"), Machine(f"bm-{tag}-b", "10.213.0.2"))
    first, second = machines
    made = []
    try:
        for machine in machines:
            _ip("netns", "add", machine.name)
            made.append(machine)
        _ip("link", "add", f"v{tag}a", "netns", first.name, "type", "veth",
            "peer", "name", f"v{tag}b", "netns", second.name)  # fmt: skip
        for machine, end in zip(machines, "ab", strict=True):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", f"v{tag}{end}")
            for device in (f"v{tag}{end}", "lo"):
                _ip("-n", machine.name, "link", "set", device, "up")
        yield first, second
    finally:
        for machine in made:
            _ip("netns", "del", machine.name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr}")


def until_logged(log: Path, words: str, seconds: float) -> None:
    """Wait until a program's log has these words."""
    wait_until(lambda: log.exists() and words in log.read_text(), seconds, f"{words!r} in {log}")
