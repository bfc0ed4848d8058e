"""A machine of its own: a Debian tree with a real systemd as PID 1, in a systemd-nspawn container.

    with Machine(tree, directory) as machine:
        machine.run("systemctl", "start", "syncd.service")
        machine.shell("echo one > /run/x; cat /run/x")

It has no network but its loopback, and is gone with the process that made it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Self

from support.waiting import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SUITES = {"bookworm": "3.11", "trixie": "3.13"}
"""Releases of Debian, the older first, and the Python that each has."""
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "curl", "dbus", "make", "python3-venv", "systemd-sysv")
BOOT = 120.0
_BUS = "/run/dbus/system_bus_socket"


def step(text: str) -> None:
    """Logs what happens."""
    sys.stderr.write(f"\n  - {text} ")
    sys.stderr.flush()


def cache() -> str:
    """Where downloads survive a fresh clone."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = f"{base}/syncd-test"
    os.makedirs(path, exist_ok=True)
    return path


@contextlib.contextmanager
def scratch(room: int) -> Iterator[str]:
    """A directory for the time being: in memory where that has so much room, since trees are large.

    Args:
        room: Bytes.
    """
    memory = "/dev/shm"
    fits = os.path.isdir(memory) and shutil.disk_usage(memory).free > room
    runs = fits and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    path = tempfile.mkdtemp(prefix="syncd-test-", dir=memory if runs else None)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def mirror(suite: str) -> list[str]:
    """The mirror that this machine's apt uses for the suite; empty for debootstrap's default."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [line.split()[0] for line in listed if line.endswith(f" {suite}")][:1]


def debian_tree(suite: str = SUITE) -> str:
    """A bootable Debian tree, made once: copy it, do not write to it."""
    tree = f"{cache()}/{suite}-{'-'.join(PACKAGES)}"
    if os.path.isdir(tree):
        step(f"the Debian tree is in the cache: {tree}")
        return tree
    step(f"debootstrap {suite}: about a minute")
    include = f"--include={','.join(PACKAGES)}"
    with scratch(1 << 30) as directory:
        made = f"{directory}/tree"
        command = ["debootstrap", "--variant=minbase", include, suite, made, *mirror(suite)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:])
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(f"{made}/{waste}", ignore_errors=True)
        copy_tree(made, f"{tree}.{os.getpid()}")
    os.rename(f"{tree}.{os.getpid()}", tree)
    return tree


def copy_tree(tree: str, target: str) -> None:
    """Copies a tree with owners, links and device nodes; in no time where the disk can."""
    subprocess.run(["cp", "-a", "--reflink=auto", tree, target], check=True)


class Machine:
    """A booted copy of a tree.

    Args:
        tree: From `debian_tree`.
        directory: Where the copy goes; removed in the end.
        binds: Directories of the host to show, read-only, by their path in the machine.
    """

    def __init__(self, tree: str, directory: str, binds: Mapping[str, str] | None = None) -> None:
        self.root = f"{directory}/root"
        copy_tree(tree, self.root)
        self._binds = binds or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._bus: int | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        self._start_bus()
        binds = [f"--bind-ro={source}:{place}" for place, source in self._binds.items()]
        command = ["systemd-nspawn", "-D", self.root, "--boot", "--register=no", "--keep-unit"]
        self._log = open(f"{self.root}.log", "wb")
        self._process = subprocess.Popen(
            [*command, "--private-network", "--console=pipe", *binds],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.wait(self._is_up, "systemd to boot", BOOT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            if self._process.poll() is None and self._leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGKILL)  # PID 1: everything ends with it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DEADLINE)
            self._process.kill()
            self._process.wait()
            self._log.close()
        if self._bus is not None:
            os.kill(self._bus, signal.SIGTERM)
            for left in (_BUS, f"{os.path.dirname(_BUS)}/pid"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)
        shutil.rmtree(self.root, ignore_errors=True)

    def _start_bus(self) -> None:
        """A system bus, which systemd-nspawn insists on even where it registers nothing."""
        if os.path.exists(_BUS):
            return
        os.makedirs(os.path.dirname(_BUS), exist_ok=True)
        done = subprocess.run(
            ["dbus-daemon", "--system", "--fork", "--print-pid"],
            capture_output=True,
            text=True,
            check=True,
        )
        self._bus = int(done.stdout)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._printed()
        pid = self._process.pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
        if not children:
            return False
        self._leader = int(children[0])
        asked = self.run("systemctl", "is-system-running", check=False)
        return asked.stdout.strip() in {"running", "degraded"}

    def _printed(self) -> str:
        with open(f"{self.root}.log", errors="replace") as file:
            return file.read()[-3000:]

    def run(
        self,
        *command: str,
        check: bool = True,
        stdin: str | None = None,
        within: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as root in the machine."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "env", "-i", path, *variables, *command],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        if check and done.returncode != 0:
            said = done.stdout[-3000:] + done.stderr[-3000:]
            raise AssertionError(f"{command} returned {done.returncode}:\n{said}")
        return done

    def shell(self, script: str, *, check: bool = True, **environment: str) -> str:
        """Runs a shell script in root's home; what it printed."""
        command = ("bash", "-euo", "pipefail", "-c", f"cd /root; {script}")
        return self.run(*command, check=check, environment={"HOME": "/root", **environment}).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Writes a file in the machine, on a tmpfs too."""
        place = f"mkdir -p $(dirname {path}) && cat > {path} && chmod {mode:o} {path}"
        self.run("bash", "-c", place, stdin=text)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "-q", "--no-pager", "-o", "cat", "-u", unit).stdout

    def wait(self, condition: Callable[[], bool], what: str, within: float = DEADLINE) -> None:
        """Waits for something that nothing signals."""
        wait_until(condition, lambda: f"waited for {what}\n{self._printed()}", within)
