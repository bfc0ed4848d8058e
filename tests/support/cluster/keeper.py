"""Holds the cluster's namespaces, and removes everything when the tests are gone, killed or not.

    keeper.py DIRECTORY CGROUP

It runs apart from the tests and ends when its standard input does, which the kernel closes even if
they are killed. Everything of the cluster is a process in one PID namespace, whose end ends them
all; its mounts and its network are in namespaces of the same life. What is left then are control
groups and one directory, which the keeper removes. If it is killed itself, the kernel still ends
the namespaces, and the next cluster removes the rest (`support.cluster.node.sweep`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

CONTROLLERS = "/sys/fs/cgroup"
KUBELET = "/var/lib/kubelet"
LONGEST = 30.0

# The kubelet sets these for the whole machine; it finds what it wants in files of its own instead.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}
SETUP = """
set -eu
mount -t tmpfs -o mode=755 cluster /run
mount -t tmpfs -o mode=755 cluster /var/log
mkdir -p /run/netns /run/lock /run/secrets-store-csi-providers
mount --bind "$1/kubelet" /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
ip link set lo up
ip link add cni0 type bridge
ip addr add 10.88.0.1/16 dev cni0
ip link set cni0 up
ip link add port0 type veth peer name port1   # a bridge without ports has no carrier
ip link set port0 master cni0
ip link set port0 up
ip link set port1 up
ip route add default dev cni0
echo 1 > /proc/sys/net/ipv4/ip_forward
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
  echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
fi
"""


def hierarchies() -> list[str]:
    """The control group hierarchies: many of version 1, or the one of version 2."""
    if os.path.exists(f"{CONTROLLERS}/cgroup.controllers"):
        return [CONTROLLERS]
    return [f"{CONTROLLERS}/{name}" for name in sorted(os.listdir(CONTROLLERS))]


def make_groups(name: str) -> None:
    for hierarchy in hierarchies():
        group = f"{hierarchy}/{name}"
        os.makedirs(group, exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{hierarchy}/{setting}") and os.path.exists(f"{group}/{setting}"):
                with open(f"{hierarchy}/{setting}") as file:
                    content = file.read()
                with open(f"{group}/{setting}", "w") as file:
                    file.write(content)


def remove_groups(name: str) -> None:
    for hierarchy in hierarchies():
        deadline = time.monotonic() + LONGEST
        while os.path.isdir(f"{hierarchy}/{name}") and time.monotonic() < deadline:
            for directory, _, _ in os.walk(f"{hierarchy}/{name}", topdown=False):
                with contextlib.suppress(OSError):  # a process in it has not ended yet
                    os.rmdir(directory)
            time.sleep(0.05)


def remove(directory: str, group: str) -> None:
    """Removes what is left of a cluster that has ended."""
    remove_groups(group)
    deadline = time.monotonic() + LONGEST
    while os.path.isdir(directory) and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)


def initialise(directory: str) -> None:
    """PID 1 of the cluster: sets up its mounts and its network, then reaps."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name, value in SYSCTLS.items():
        if os.path.exists(f"/proc/sys/{name}"):
            file = f"{directory}/sysctl-{name.replace('/', '-')}"
            with open(file, "w") as opened:
                opened.write(f"{value}\n")
            subprocess.run(["mount", "--bind", file, f"/proc/sys/{name}"], check=True)
    subprocess.run(["bash", "-c", SETUP, "setup", directory], check=True)
    with open(f"{directory}/ready", "w"):
        pass
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


def keep(directory: str, group: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    made = not os.path.isdir(KUBELET)
    os.makedirs(KUBELET, exist_ok=True)
    make_groups(group)
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    process = subprocess.Popen(
        [*command, sys.executable, __file__, "--initialise", directory],
        stdin=subprocess.DEVNULL,
    )
    children: list[str] = []
    try:
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            while not (children := file.read().split()) and process.poll() is None:
                time.sleep(0.01)
                file.seek(0)
        with open(f"{directory}/init.tmp", "w") as opened:
            opened.write(children[0] if children else "")
        os.rename(f"{directory}/init.tmp", f"{directory}/init")
        sys.stdin.buffer.read()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        process.kill()  # its child, and with it the namespace, is killed by --kill-child
        process.wait()
        deadline = time.monotonic() + LONGEST
        while children and os.path.exists(f"/proc/{children[0]}") and time.monotonic() < deadline:
            time.sleep(0.02)
        remove(directory, group)
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(KUBELET)


if __name__ == "__main__":
    if sys.argv[1] == "--initialise":
        initialise(sys.argv[2])
    else:
        keep(*sys.argv[1:])
