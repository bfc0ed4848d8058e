"""The cluster that the tests share: a node with images, the driver, its provider and a vault.

with Cluster(programs) as cluster:
    cluster.write("client", secret="1")         # a secret of the vault, below secret/aidbox/
    cluster.apply(objects, namespace)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import yaml
from support.cluster.images import DRIVER, Images, load
from support.cluster.node import SOCKET, TOKEN, VAULT_LOCAL, Node
from support.machine import debian_tree, step
from support.sources import copy_checkout, wheels
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

POLL: Final = "1s"
"""The driver's `--rotation-poll-interval`: 2 minutes by default."""

LONG: Final = 180.0
"""Seconds for a pod to start, on a busy machine."""

_RESTRICTED: Final = "pod-security.kubernetes.io"


class Cluster(Node):
    """A node that is ready for pods with secrets."""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._bring_up()
        except BaseException:
            for name in ("keeper", "apiserver", "containerd", "kubelet"):
                with contextlib.suppress(OSError):
                    step(f"{name}: {self.log(name)[-1500:]}")
            self.__exit__()
            raise
        return self

    def _bring_up(self) -> None:
        started = time.monotonic()
        for name in ("etcd", "vault", "containerd", "apiserver"):
            self.start(name)
        with tempfile.TemporaryDirectory() as checkout:
            copy_checkout(checkout)
            archives = Images(
                self.shell,
                self.directory,
                programs=self.programs,
                tree=debian_tree(),
                wheels=wheels(),
                checkout=checkout,
            ).make()
        step(f"images after {time.monotonic() - started:.0f} s")
        load(SOCKET, archives, self._enter)
        self.wait_for_api()
        for name in ("manager", "scheduler", "proxy", "provider", "kubelet"):
            self.start(name)
        self._install_driver()
        self._prepare_vault()
        wait_until(lambda: "Ready" in self._node_conditions(), self.kubectl_describe, LONG)
        ready = ("rollout", "status", "daemonset/csi-secrets-store", "-n", "kube-system")
        self.kubectl(*ready, within=LONG)
        step(f"the cluster is up after {time.monotonic() - started:.0f} s")

    def kubectl_describe(self) -> str:
        return self.kubectl("describe", "nodes", check=False) + self.log("kubelet")[-2000:]

    def _node_conditions(self) -> list[str]:
        conditions = [
            condition
            for node in self.get("nodes")["items"]
            for condition in node["status"].get("conditions", [])
        ]
        return [item["type"] for item in conditions if item["status"] == "True"]

    def wait_for_api(self) -> None:
        wait_until(
            lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok",
            lambda: self.log("apiserver")[-3000:],
            LONG,
        )

    def _install_driver(self) -> None:
        """The driver's own objects from its module, with our images and a short interval."""
        deploy = f"{self.programs}/deploy"
        names = ["csidriver", "rbac-secretproviderclass", "secrets-store-csi-driver"]
        names += [
            f"secrets-store.csi.x-k8s.io_secretproviderclass{e}" for e in ("es", "podstatuses")
        ]
        objects: list[dict[str, Any]] = []
        for name in names:
            with open(f"{deploy}/{name}.yaml") as file:
                objects += filter(None, yaml.safe_load_all(file))
        for item in objects:
            if item["kind"] == "CSIDriver":
                item["spec"]["tokenRequests"] = [{"audience": "vault"}]
            elif item["kind"] == "DaemonSet":
                _adapt_driver(item["spec"]["template"]["spec"])
        self.apply(objects)

    def _prepare_vault(self) -> None:
        """A Kubernetes login for the service account aidbox of every namespace."""
        self.kubectl("create", "namespace", "vault")
        self.kubectl("create", "serviceaccount", "vault", "-n", "vault")
        role = ("--clusterrole=system:auth-delegator", "--serviceaccount=vault:vault")
        self.kubectl("create", "clusterrolebinding", "vault", *role)
        reviewer = self.kubectl("create", "token", "vault", "-n", "vault").strip()
        with open(f"{self.directory}/ca.crt") as file:
            authority = file.read()
        login = {"kubernetes_host": "https://127.0.0.1:6443", "kubernetes_ca_cert": authority}
        self.vault("sys/auth/kubernetes", {"type": "kubernetes"})
        self.vault("auth/kubernetes/config", {**login, "token_reviewer_jwt": reviewer})
        self.allow("secret/data/aidbox/*")
        bound = {"bound_service_account_names": "aidbox", "bound_service_account_namespaces": "*"}
        self.vault("auth/kubernetes/role/aidbox", {**bound, "policies": "aidbox", "ttl": "20m"})

    def allow(self, path: str) -> None:
        """Sets what the service accounts aidbox may read in the vault."""
        policy = f'path "{path}" {{ capabilities = ["read"] }}'
        self.vault("sys/policies/acl/aidbox", {"policy": policy})

    def vault(self, path: str, body: object = None, method: str = "POST") -> None:
        """Asks the vault as root."""
        host = VAULT_LOCAL.removeprefix("http://")
        status, answer = self.request(host, f"/v1/{path}", method, body, {"X-Vault-Token": TOKEN})
        assert status in {200, 204}, (path, status, answer)

    def write(self, name: str, **values: str) -> None:
        """Sets the keys of a secret, all of them."""
        self.vault(f"secret/data/aidbox/{name}", {"data": values})

    def request(
        self,
        host: str,
        path: str,
        method: str = "GET",
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """One HTTP request from within the cluster's network."""
        connection = http.client.HTTPConnection(host, timeout=10)
        with self.network():
            connection.connect()
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def apply(self, objects: Iterable[dict[str, Any]] | str, *options: str) -> str:
        """Applies objects on the server's side, with strict validation; what kubectl printed."""
        text = objects if isinstance(objects, str) else yaml.safe_dump_all(objects)
        command = ("apply", "--server-side", "--force-conflicts", "--validate=strict")
        return self.kubectl(*command, *options, "-f", "-", stdin=text)

    @contextlib.contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace that enforces Pod Security `restricted`."""
        labels = {f"{_RESTRICTED}/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        metadata = {"name": name, "labels": labels}
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}])
        account = ("get", "serviceaccount", "default", "-n", name)
        wait_until(lambda: "NotFound" not in self.kubectl(*account, check=False))
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")


def _adapt_driver(spec: dict[str, Any]) -> None:
    spec["containers"] = [item for item in spec["containers"] if item["name"] != "liveness-probe"]
    for container in spec["containers"]:
        container.pop("livenessProbe", None)
        container["image"] = DRIVER
        if container["name"] == "node-driver-registrar":
            container["command"] = ["/registrar"]
            continue
        changed = {"enable-secret-rotation=false": "enable-secret-rotation=true"}
        changed["rotation-poll-interval=2m"] = f"rotation-poll-interval={POLL}"
        for before, after in changed.items():
            assert any(before in argument for argument in container["args"])
            container["args"] = [item.replace(before, after) for item in container["args"]]
    for volume in spec["volumes"]:
        if volume["hostPath"]["path"].startswith("/etc/kubernetes"):
            volume["hostPath"]["path"] = "/run/secrets-store-csi-providers-2"
