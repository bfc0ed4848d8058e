"""A real Kubernetes of one node, in namespaces of its own.

    with Node(programs) as node:
        node.kubectl("get", "nodes")
        node.kill("kubelet")
        node.start("kubelet")
        with node.network():
            socket.create_connection(("10.96.0.10", 80))

The API server, etcd, controllers, scheduler, kubelet, kube-proxy and containerd are processes of
this machine, and so are OpenBao, whose address for pods is 10.88.0.1, and the driver's provider.
There is no cluster DNS and no network policy controller.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final, Self

from support.cluster.certificates import ADDRESS, make_certificates
from support.cluster.keeper import CONTROLLERS, hierarchies, remove
from support.machine import cache
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKET: Final = "/run/containerd/cluster.sock"
VAULT: Final = f"https://{ADDRESS}:8200"
VAULT_LOCAL: Final = "http://127.0.0.1:8201"
TOKEN: Final = "root-token"
SYNC: Final = "1s"
"""How often the kubelet republishes the CSI volumes of a pod: a minute by default."""

_NAME: Final = "syncd-cluster-"
_BIN: Final = os.path.dirname(sys.executable)
_MEMORY: Final = (
    ("memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    ("memory.current", "memory.peak"),
)
_CLONE_NEWNET: Final = 0x40000000

_CONTAINERD = """\
version = 2
root = "{d}/containerd"
state = "/run/containerd/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{d}/cni"
"""
_CNI = {
    "cniVersion": "0.4.0",
    "name": "cluster",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "dataDir": "/run/cni",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}
_KUBELET = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: false}}
  x509: {{clientCAFile: {d}/ca.crt}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: /{group}
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://{socket}
tlsCertFile: {d}/kubelet.crt
tlsPrivateKeyFile: {d}/kubelet.key
readOnlyPort: 0
resolvConf: {d}/resolv.conf
podLogsDir: {d}/pods
volumePluginDir: {d}/plugins
evictionHard: {{memory.available: "50Mi", nodefs.available: "1%", imagefs.available: "1%"}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
syncFrequency: {sync}
"""
_VAULT = """\
listener "tcp" {{
  address = "{address}:8200"
  tls_cert_file = "{d}/vault.crt"
  tls_key_file = "{d}/vault.key"
}}
"""

COMPONENTS: Final = {
    "etcd": "{bin}/etcd --data-dir {d}/etcd --unsafe-no-fsync --log-level warn",
    "apiserver": "{p}/hyperkube kube-apiserver --etcd-servers=http://127.0.0.1:2379"
    " --bind-address=0.0.0.0 --secure-port=6443 --advertise-address={address}"
    " --service-cluster-ip-range=10.96.0.0/16 --client-ca-file={d}/ca.crt --cert-dir={d}"
    " --tls-cert-file={d}/apiserver.crt --tls-private-key-file={d}/apiserver.key"
    " --service-account-key-file={d}/sa.pub --service-account-signing-key-file={d}/sa.key"
    " --service-account-issuer=https://kubernetes.default.svc --authorization-mode=Node,RBAC"
    " --kubelet-preferred-address-types=InternalIP --allow-privileged=true"
    " --enable-admission-plugins=NodeRestriction --kubelet-client-certificate={d}/admin.crt"
    " --kubelet-client-key={d}/admin.key --kubelet-certificate-authority={d}/ca.crt",
    "manager": "{p}/hyperkube kube-controller-manager --kubeconfig={d}/admin.kubeconfig"
    " --service-account-private-key-file={d}/sa.key --root-ca-file={d}/ca.crt"
    " --use-service-account-credentials=false --leader-elect=false",
    "scheduler": "{p}/hyperkube kube-scheduler --kubeconfig={d}/admin.kubeconfig"
    " --leader-elect=false",
    "containerd": "containerd -c {d}/containerd.toml",
    "kubelet": "{p}/hyperkube kubelet --config={d}/kubelet.yaml --kubeconfig={d}/node.kubeconfig"
    " --hostname-override=node1 --node-ip={address} --root-dir=/var/lib/kubelet --cert-dir={d}",
    "proxy": "{p}/hyperkube kube-proxy --kubeconfig={d}/admin.kubeconfig"
    " --hostname-override=node1 --proxy-mode=nftables --cluster-cidr=10.88.0.0/16"
    " --masquerade-all --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0"
    " --conntrack-tcp-timeout-close-wait=0",
    "vault": "{bin}/bao server -dev -dev-root-token-id={token} -dev-no-store-token"
    " -dev-listen-address=127.0.0.1:8201 -config={d}/vault.hcl",
    "provider": "{p}/provider -socket /run/secrets-store-csi-providers/vault.sock",
}


class Node:
    """The namespaces and the processes of a cluster.

    Args:
        programs: From `binaries`.
    """

    def __init__(self, programs: str) -> None:
        self.programs = programs
        self.directory = ""
        self.group = f"{_NAME}{os.getpid()}"
        self._keeper: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        sweep()
        self.directory = tempfile.mkdtemp(prefix=_NAME, dir=cache())
        os.chmod(self.directory, 0o755)
        for name in ("kubelet", "cni", "pods", "plugins"):
            os.mkdir(f"{self.directory}/{name}")
        keeper = f"{os.path.dirname(__file__)}/keeper.py"
        with open(f"{self.directory}/keeper.log", "wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, keeper, self.directory, self.group],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt of the tests is not one of the keeper
            )
        with open(f"{self.directory}/keeper", "w") as file:
            file.write(str(self._keeper.pid))
        try:
            self._wait_for("ready")
            with open(f"{self.directory}/init") as opened:
                self._init = int(opened.read())
            self._write_configuration()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(120)
        for process in self._processes:
            process.wait()

    def _wait_for(self, name: str) -> None:
        keeper, path = self._keeper, f"{self.directory}/{name}"
        assert keeper is not None
        wait_until(lambda: os.path.exists(path) or keeper.poll() is not None, f"no {name}")
        if not os.path.exists(path):
            raise AssertionError("the keeper ended")

    def _write_configuration(self) -> None:
        make_certificates(self.directory)
        for name, template in (
            ("containerd.toml", _CONTAINERD),
            ("kubelet.yaml", _KUBELET),
            ("vault.hcl", _VAULT),
            ("resolv.conf", "nameserver 127.0.0.1\n"),
        ):
            values = {"socket": SOCKET, "group": self.group, "sync": SYNC}
            with open(f"{self.directory}/{name}", "w") as file:
                file.write(template.format(d=self.directory, address=ADDRESS, **values))
        with open(f"{self.directory}/cni/10-cluster.conflist", "w") as file:
            json.dump(_CNI, file)

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self._init), "--mount", "--net", "--pid"]

    @property
    def enter_network(self) -> list[str]:
        """What executes a command in the cluster's network."""
        return ["nsenter", "-t", str(self._init), "--net"]

    def start(self, name: str) -> None:
        """Starts a component; its log is `NAME.log`."""
        values = {"d": self.directory, "p": self.programs, "bin": _BIN, "address": ADDRESS}
        command = COMPONENTS[name].format(token=TOKEN, **values)
        script = f'echo $$ > "$0.pid"; exec {command} >> "$0.log" 2>&1'
        path = f"{_BIN}:{os.environ['PATH']}:/usr/sbin:/sbin"
        environment = {**os.environ, "PATH": path, "HOME": self.directory}
        process = subprocess.Popen(
            [*self._enter, "sh", "-c", script, f"{self.directory}/{name}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._processes.append(process)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Kills a component and waits for its end."""
        with open(f"{self.directory}/{name}.pid") as file:
            pid = file.read().strip()
        wait = f"kill -{number:d} {pid}; while kill -0 {pid} 2> /dev/null; do sleep 0.02; done"
        self.shell(wait)

    def shell(self, script: str, *, check: bool = True, within: float = 300.0) -> str:
        """Runs a shell script as root among the cluster's mounts and processes; what it printed."""
        return self._run([*self._enter, "bash", "-euo", "pipefail", "-c", script], check, within)

    def log(self, name: str) -> str:
        with open(f"{self.directory}/{name}.log", errors="replace") as file:
            return file.read()

    def kubectl(
        self, *command: str, stdin: str | None = None, check: bool = True, within: float = 120.0
    ) -> str:
        """Runs kubectl as an administrator; what it printed, the errors last."""
        kubectl = [f"{_BIN}/kubectl", f"--kubeconfig={self.directory}/admin.kubeconfig"]
        enter = ["nsenter", "-t", str(self._init), "--net"]
        return self._run([*enter, *kubectl, *command], check, within, stdin)

    def user(self, script: str, directory: str) -> str:
        """Runs a shell script as a user of the cluster, with kubectl and Helm at hand."""
        enter = ["nsenter", "-t", str(self._init), "--net", f"--wd={directory}"]
        return self._run([*enter, "bash", "-euo", "pipefail", "-c", script], True, 120.0)

    def _run(self, command: list[str], check: bool, within: float, stdin: str | None = None) -> str:
        environment = {**os.environ, "HOME": self.directory}
        environment["KUBECONFIG"] = f"{self.directory}/admin.kubeconfig"
        environment["PATH"] = f"{_BIN}:{self.programs}:{os.environ['PATH']}:/usr/sbin:/sbin"
        done = subprocess.run(
            command,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=within,
            env=environment,
            check=False,
        )
        if check and done.returncode != 0:
            said = done.stdout[-4000:] + done.stderr[-4000:]
            raise AssertionError(f"{shlex.join(command)} returned {done.returncode}:\n{said}")
        return done.stdout + done.stderr

    def get(self, *what: str) -> Any:
        """An object or a list of them, decoded."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Has this thread in the cluster's network; sockets made in it stay there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self._init}/ns/net") as theirs:
            assert libc.setns(theirs.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(ours.fileno(), _CLONE_NEWNET) == 0

    def path(self, path: str) -> str:
        """A path of the cluster's mounts, as this process sees it."""
        return f"/proc/{self._init}/root{path}"

    def groups(self, container: str) -> list[str]:
        """The control groups of a container, by the id that the API server has."""
        wanted = container.removeprefix("containerd://")
        return [
            directory
            for hierarchy in hierarchies()
            for directory, _, _ in os.walk(f"{hierarchy}/{self.group}")
            if os.path.basename(directory) == wanted
        ]

    def kill_container(self, container: str, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the processes of a container."""
        with open(f"{self.groups(container)[0]}/cgroup.procs") as file:
            for line in file:
                os.kill(int(line), number)

    def memory(self, container: str) -> tuple[int, int]:
        """What a container's memory control group counts now, and at most so far, in bytes."""
        for now, most in _MEMORY:
            for group in self.groups(container):
                if os.path.exists(f"{group}/{now}"):
                    with open(f"{group}/{now}") as file, open(f"{group}/{most}") as other:
                        return int(file.read()), int(other.read())
        raise AssertionError(f"{container} has no memory control group")


def sweep() -> None:
    """Removes what clusters left whose keepers were killed themselves."""
    for name in os.listdir(cache()):
        directory = f"{cache()}/{name}"
        if not name.startswith(_NAME) or not os.path.isfile(f"{directory}/keeper"):
            continue
        with open(f"{directory}/keeper") as file:
            keeper = file.read()
        if not os.path.exists(f"/proc/{keeper}"):
            shutil.rmtree(directory, ignore_errors=True)
    for hierarchy in os.listdir(CONTROLLERS):
        for group in _groups(f"{CONTROLLERS}/{hierarchy}"):
            if not os.path.exists(f"/proc/{group.removeprefix(_NAME)}"):
                remove("", group)


def _groups(hierarchy: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(hierarchy) if name.startswith(_NAME)]
    return []
