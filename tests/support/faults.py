"""What the tests of faults share: expected versions, counting receivers, rotation, namespaces.

Expected versions are computed here independently of the daemon, from the values that the test
published and the installation's key, so that "nothing lost" compares two sides.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from support.holding import hold
from support.receiver import Receiver, Reply
from support.waiting import DEADLINE, wait_until
from support.world import secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from support.receiver import Request
    from support.world import DaemonProcess, World

SOAK = os.environ.get("SYNCD_SOAK") == "1"
"""Whether to run at full size."""


def scaled(short: int, full: int) -> int:
    """A count: small in `make test`, full in `make soak`."""
    return full if SOAK else short


def expected(world: World, values: Mapping[str, bytes] | None = None) -> dict[str, str]:
    """The version of each secret, as the contract has it: keyed, and bound to the name."""
    with open(f"{world.state}/fingerprint.key", "rb") as file:
        key = file.read()
    return {
        name: "k1:" + blake2b(name.encode() + b"\0" + value, key=key, digest_size=16).hexdigest()
        for name, value in (world.values if values is None else values).items()
    }


class Books(Receiver):
    """A receiver that derives a consumer's state from the events alone.

    Attributes:
        state: The version of each secret that the events ended up with.
        received: How many events arrived.
        versions: Every version that was ever announced, by secret.
        removed: How many events said that a secret is gone.
        disordered: How many events were older than one of the same secret before them.
    """

    def __init__(self, *, keep: bool = True, **more: Any) -> None:
        super().__init__(**more)
        self._keep = keep
        self.state: dict[str, str | None] = {}
        self.versions: dict[str, set[str]] = {}
        self.received = self.removed = self.disordered = 0
        self._epoch = ""
        self._newest: dict[str, int] = {}

    def _record(self, request: Request) -> Reply:
        with self._news:
            for event in request.events:
                self._book(event)
        if self._keep:
            return super()._record(request)
        return self._script.popleft() if self._script else self.default

    def _book(self, event: Mapping[str, Any]) -> None:
        if event["type"] != "io.syncd.secret.changed":
            return
        name, change = event["subject"], event["data"]
        epoch, _, sequence = event["id"].rpartition("-")
        sequence = int(sequence)
        if epoch != self._epoch:  # a new ledger counts anew
            self._epoch = epoch
            self._newest.clear()
        self.received += 1
        self.removed += change["change"] == "removed"
        if change["version"] is not None:
            self.versions.setdefault(name, set()).add(change["version"])
        if sequence < self._newest.get(name, 0):
            self.disordered += 1
            return
        self._newest[name] = sequence
        self.state[name] = change["version"]

    def recover(self) -> None:
        """Forgets the script and releases what hangs: from now on every answer is the default."""
        self._script.clear()
        self.release()

    def start_from(self, versions: Mapping[str, str]) -> None:
        """Takes over the baseline, which a quiet start does not announce."""
        self.state = {**versions}

    def lost(self, versions: Mapping[str, str]) -> list[str]:
        """The secrets whose last event does not match the mount."""
        with self._news:
            return sorted(name for name in versions if self.state.get(name) != versions[name])

    def wait_for_state(self, versions: Mapping[str, str]) -> None:
        """Waits until the events match the mount."""
        wait_until(
            lambda: not self.lost(versions),
            lambda: f"lost {len(self.lost(versions))} of {len(versions)}",
        )


class Rotation:
    """A publisher in a thread of its own that changes some secrets at a time, until stopped."""

    def __init__(self, world: World, *, pause: float, seed: int = 7) -> None:
        self._world = world
        self._pause = pause
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._problem: BaseException | None = None
        self.swaps = 0

    def _run(self) -> None:
        names = sorted(self._world.values)
        try:
            while not self._stop.wait(self._pause):
                chosen = self._rng.sample(names, self._rng.randint(1, max(1, len(names) // 5)))
                self.swaps += 1
                self._world.publish({name: secret(f"{name}-{self.swaps}") for name in chosen})
        except BaseException as error:  # noqa: BLE001 - it belongs to the test's thread
            self._problem = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        if self._problem is not None:
            raise self._problem


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Resident memory of a process, KiB."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1])


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def hook(receiver: Receiver, name: str = "hook", **more: Any) -> dict[str, Any]:
    """The configuration of a webhook that leads to a receiver."""
    return {"name": name, "kind": "webhook", "url": receiver.url, **more}


def is_root() -> bool:
    return os.geteuid() == 0


class MountNamespace:
    """A private mount namespace, alive while the block is; needs root.

    What is mounted in it is invisible outside, and goes with the namespace.

    Args:
        parent: The namespace to begin with a copy of, as a container runtime does for a pod.
    """

    def __init__(self, parent: MountNamespace | None = None) -> None:
        self._parent = parent

    def __enter__(self) -> Self:
        command = ["unshare", "--mount", "--propagation", "private", "cat"]
        if self._parent is not None:
            command = [*self._parent.wrapper, *command]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.read(1) == b"\n"  # `cat` runs, so the namespace is there
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    @property
    def wrapper(self) -> list[str]:
        """Executes a command in there, in its own place."""
        return ["nsenter", "-t", str(self._holder.pid), "--mount", "--"]

    def path(self, path: str) -> str:
        """How a path of the namespace is reached from outside."""
        return f"/proc/{self._holder.pid}/root{path}"

    def run(self, *command: str) -> None:
        subprocess.run([*self.wrapper, *command], check=True, timeout=DEADLINE)


@contextlib.contextmanager
def paused(daemon: DaemonProcess) -> Iterator[None]:
    """Holds a daemon still."""
    import signal

    hold(daemon.pid)
    try:
        yield
    finally:
        daemon.signal(signal.SIGCONT)


def sandbox(*denied: str, errno: str) -> Sequence[str]:
    """A wrapper whose command finds these system calls missing (see `support/sandbox.py`)."""
    script = os.path.join(os.path.dirname(__file__), "sandbox.py")
    return [sys.executable, script, errno, *denied, "--"]
