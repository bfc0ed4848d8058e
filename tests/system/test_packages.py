"""The package on Debian's releases under a real systemd: from `apt install` to `apt purge`.

The machine of each release is one for all tests here, which build on each other in this order. It
has no network, and neither pip, make nor venv.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from support.documents import blocks_of, commands, document
from support.links import broken_links
from support.machine import SUITES, Machine, debian_tree, scratch, step

from syncd import __version__
from syncd.ledger.schema import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOM = 2 << 30
NEWER = "0.1.1"
DEB = f"syncd_{__version__}-1_amd64.deb"
RPM = f"syncd-{__version__}-1.x86_64.rpm"
INSTALL, CONFIGURE, START = commands("README.md", "systemd")
COMPLETE = """
source /usr/share/bash-completion/completions/syncd
COMP_WORDS=(syncd sta) COMP_CWORD=1
_syncd_completion syncd
echo ${COMPREPLY[@]}
"""


def make_newer(deb: str, directory: str) -> str:
    """The package as a later version would be: with another schema of the ledger."""
    tree = f"{directory}/newer"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    for name, before, after in (
        ("DEBIAN/control", f"Version: {__version__}", f"Version: {NEWER}"),
        ("usr/lib/syncd/syncd/__init__.py", f'"{__version__}"', f'"{NEWER}"'),
        ("usr/lib/syncd/syncd/ledger/schema.py", f"= {VERSION}\n", f"= {VERSION + 1}\n"),
        ("usr/lib/syncd/syncd/ledger/schema.py", "UPGRADES: Final = {", f'\\g<0>{VERSION}: "", '),
    ):
        with open(f"{tree}/{name}") as file:
            text = file.read()
        changed = re.sub(re.escape(before), after, text, count=1)
        assert changed != text
        with open(f"{tree}/{name}", "w") as file:
            file.write(changed)
    with open(f"{tree}/usr/lib/syncd/syncd/new_module.py", "w"):
        pass
    made = f"{directory}/syncd_{NEWER}-1_amd64.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", tree, made], check=True)
    return made


@pytest.fixture(scope="module")
def packages(release: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with the package, and a newer one."""
    directory = str(tmp_path_factory.mktemp("packages"))
    os.link(release / "dist" / DEB, f"{directory}/{DEB}")
    make_newer(f"{directory}/{DEB}", directory)
    return directory


@pytest.fixture(scope="module", params=SUITES)
def machine(
    request: pytest.FixtureRequest, need: Callable[..., None], packages: str
) -> Iterator[Machine]:
    need("debootstrap", "systemd-nspawn", "dbus-daemon")
    tree = debian_tree(request.param)
    step(f"booting {request.param}")
    with scratch(ROOM) as directory, Machine(tree, directory, {"/dist": packages}) as machine:
        machine.write("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n', 0o755)
        machine.shell(
            "apt-get -qq purge -y make python3-venv python3-pip-whl python3-setuptools-whl"
        )
        yield machine


def follow(machine: Machine, block: str, *, version: str = __version__) -> str:
    """Runs a block of commands where the packages are; what it printed."""
    script = block.replace(f"./syncd_{__version__}-1_", f"/dist/syncd_{version}-1_")
    script = script.replace("apt ", "apt -q -y ")
    return machine.shell(f"exec 2>&1; {script}", DEBIAN_FRONTEND="noninteractive")


def show(machine: Machine, value: str) -> str:
    return machine.run("systemctl", "show", "-P", value, "syncd.service").stdout.strip()


def rotate(machine: Machine, value: str) -> None:
    """Replaces the secret, and waits until the receiver has the event."""
    before = heard(machine)
    (line,) = (line for line in START.splitlines() if line.startswith("printf two "))
    follow(machine, line.replace("two", value))
    machine.wait(lambda: heard(machine) == before + 1, "the event")


def heard(machine: Machine) -> int:
    return machine.journal("receiver").count("client-secret modified")


def test_the_first_five_minutes(machine: Machine) -> None:
    """From the package to a webhook that is proven, by README alone."""
    began = time.monotonic()
    follow(machine, INSTALL)
    step(f"installed after {time.monotonic() - began:.0f} s")
    enabled = machine.run("systemctl", "is-enabled", "syncd.service", check=False).stdout
    assert (enabled, show(machine, "ActiveState")) == ("disabled\n", "inactive")
    readme = document("README.md")
    (make_key,) = (block for block in blocks_of(readme, "sh") if "> webhook.key" in block)
    (receiver,) = (block for block in blocks_of(readme, "python") if "HTTPServer" in block)
    machine.shell(make_key)
    machine.write("/root/receiver.py", receiver)
    path = "--setenv=PYTHONPATH=/usr/lib/syncd"
    there = "--working-directory=/root"
    machine.run("systemd-run", "-q", "-u", "receiver", path, there, "python3", "receiver.py")
    machine.wait(lambda: ":9000" in listening(machine), "the receiver")
    follow(machine, CONFIGURE)
    said = follow(machine, START)
    step(f"the webhook is proven after {time.monotonic() - began:.0f} s")
    assert "0 errors, 0 warnings" in said
    assert "acknowledged" in said
    assert re.search(r"(?m)^client-secret .*present", said)
    assert re.search(r"(?m)^hook .*\bok\b", said), said
    machine.wait(lambda: heard(machine) == 1, "the event in the journal")


def listening(machine: Machine) -> str:
    """The local addresses of listening sockets."""
    table = machine.run("cat", "/proc/net/tcp").stdout.splitlines()[1:]
    found = [line.split() for line in table]
    return " ".join(f":{int(row[1].split(':')[1], 16)}" for row in found if row[3] == "0A")


def test_what_is_installed(machine: Machine) -> None:
    """Units, man pages, completion, documentation with working links, bytecode for its Python."""
    units = ("syncd.service", "syncd.socket", "syncd-credentials.socket")
    problems = machine.run("systemd-analyze", "verify", *units, check=False).stderr.splitlines()
    unknown = ("RestartSteps", "RestartMaxDelaySec")  # of systemd 254
    assert [line for line in problems if not any(key in line for key in unknown)] == []
    assert machine.shell(COMPLETE) == "status\n"
    pages = machine.shell("ls /usr/share/man/man1 /usr/share/man/man5").split()
    for page in ("syncd.1.gz", "syncd-check.1.gz", "syncd-fleet-wait.1.gz", "syncd.yaml.5.gz"):
        assert page in pages
    assert "EXIT STATUS" in machine.shell("zcat /usr/share/man/man1/syncd-run.1.gz")
    assert broken_links(f"{machine.root}/usr/share/doc/syncd") == []
    count = "find /usr/lib/syncd -name '*{}' | wc -l"
    sources = machine.shell(count.format(".py"))
    assert machine.shell(count.format(".pyc")) == sources
    cached = (
        "import importlib.util as u; print(u.cache_from_source('/usr/lib/syncd/syncd/__init__.py'))"
    )
    machine.run("ls", machine.run("python3", "-c", cached).stdout.strip())
    assert machine.run("syncd", "--version").stdout == f"syncd {__version__}\n"


def test_an_upgrade_of_a_running_service(machine: Machine) -> None:
    """It is restarted, keeps its configuration, and loses no event."""
    machine.shell("sed -i 's/9753/9754/' /etc/syncd/syncd.yaml")
    rotate(machine, "three")
    before = show(machine, "MainPID")
    (upgrade,) = commands("docs/upgrading.md", "upgrade")
    step(f"upgrading to {NEWER}")
    follow(machine, upgrade, version=NEWER)
    assert machine.run("syncd", "--version").stdout == f"syncd {NEWER}\n"
    assert show(machine, "ActiveState") == "active"
    assert show(machine, "MainPID") != before
    assert show(machine, "NRestarts") == "0"
    assert "9754" in machine.run("cat", "/etc/syncd/syncd.yaml").stdout
    rotate(machine, "four")


def test_a_downgrade(machine: Machine) -> None:
    """The older version refuses the newer ledger in one line; the guide starts it again."""
    (downgrade,) = commands("docs/upgrading.md", "downgrade")
    stop, install, remove, start = downgrade.splitlines()
    step("downgrading")
    said = follow(machine, install)
    assert "syncd.service did not start with this version" in said
    lines = machine.journal("syncd.service").splitlines()
    refused = [line for line in lines if "newer syncd" in line]
    text = (
        "cannot use /var/lib/syncd/ledger.sqlite3: a newer syncd wrote it; "
        "run that version, or remove the file to start from a new baseline"
    )
    assert refused
    assert all(text in line for line in refused)
    assert "newer syncd wrote it; run that version" in " ".join(
        document("docs/upgrading.md").split()
    )
    assert "Traceback" not in "\n".join(lines)
    left = machine.run("ls", "/usr/lib/syncd/syncd").stdout.split()
    assert "new_module.py" not in left
    assert "new_module" not in machine.run("ls", "/usr/lib/syncd/syncd/__pycache__").stdout
    follow(machine, f"{stop}\n{remove}\n{start}")
    machine.wait(lambda: show(machine, "ActiveState") == "active", "the service")
    rotate(machine, "five")


def test_an_upgrade_of_a_stopped_service(machine: Machine) -> None:
    """It stays stopped, and so it does after a removal and a new installation."""
    machine.run("systemctl", "stop", "syncd.service")
    (upgrade,) = commands("docs/upgrading.md", "upgrade")
    (remove,) = commands("docs/upgrading.md", "remove")
    follow(machine, upgrade, version=NEWER)
    assert show(machine, "ActiveState") == "inactive"
    machine.run("systemctl", "start", "syncd.service")
    step("removing")
    follow(machine, remove)
    assert show(machine, "ActiveState") == "inactive"
    assert machine.shell("ls -d /etc/syncd/syncd.yaml /var/lib/syncd/ledger.sqlite3")
    assert machine.run("ls", "/usr/lib/syncd", check=False).returncode != 0
    follow(machine, upgrade, version=NEWER)
    assert show(machine, "ActiveState") == "inactive"
    machine.run("systemctl", "start", "syncd.service")
    rotate(machine, "six")


def test_a_purge(machine: Machine) -> None:
    """Nothing is left but what the guide says."""
    step("purging")
    follow(machine, "sudo apt purge syncd")
    mine = "-path /root -prune -o -path /dist -prune -o -path /etc/credstore -prune"
    left = machine.shell(f"find / -xdev {mine} -o -name '*syncd*' -print").split()
    logs = [path for path in left if path.startswith("/var/log/")]
    assert sorted(set(left) - set(logs)) == []
    assert machine.run("ls", "-d", "/run/vault-secrets", "/run/syncd", check=False).stdout == ""
    assert machine.run("getent", "passwd", "syncd").stdout.endswith(
        ":/var/lib/syncd:/usr/sbin/nologin\n"
    )
    assert machine.run("systemctl", "is-system-running", check=False).stdout.strip() in {
        "running",
        "degraded",
    }
    assert (
        "not-found" in machine.run("systemctl", "show", "-P", "LoadState", "syncd.service").stdout
    )


def test_lintian(need: Callable[..., None], release: Path) -> None:
    """It has nothing to say that is not overridden with a reason."""
    need("lintian")
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(release / "dist" / DEB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_rpm(need: Callable[..., None], release: Path, tmp_path: Path) -> None:
    """The same files under the same scripts; its syncd runs."""
    need("rpm", "rpm2cpio", "cpio")
    rpm = str(release / "dist" / RPM)

    def ask(*arguments: str) -> str:
        command = ["rpm", "-qp", *arguments, rpm]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "python3 >= 3.11" in ask("--requires")
    assert "systemctl" in ask("--scripts")
    assert ask("--configfiles").split() == ["/etc/syncd/syncd.yaml"]
    listed = subprocess.run(
        ["dpkg-deb", "-c", str(release / "dist" / DEB)], capture_output=True, text=True, check=True
    ).stdout
    in_deb = {line.split()[5].removeprefix(".").rstrip("/") for line in listed.splitlines()}
    for_debian = re.compile("/usr/share/(lintian|python3|zsh|doc/syncd/(changelog|copyright))")
    in_rpm = set(ask("--list").split("\n"))
    files = {name for name in in_deb if not for_debian.match(name)}
    assert {
        name for name in files - in_rpm if not any(o.startswith(f"{name}/") for o in in_rpm)
    } == set()
    subprocess.run(f"rpm2cpio {rpm} | cpio -id --quiet", shell=True, cwd=tmp_path, check=True)
    shown = subprocess.run(
        [
            "/usr/bin/python3",
            "-B",
            "-c",
            "from syncd.commands.main import main; main()",
            "--version",
        ],
        env={"PYTHONPATH": str(tmp_path / "usr/lib/syncd")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout == f"syncd {__version__}\n", shown.stderr
