"""Aidbox with syncd in the cluster: deployed by the manifests, called and observed.

with Hook(cluster) as hook, deployed(cluster, "one", hook) as product:
    with product.probing() as probes:
        ...
    assert probes.failures == []
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

import yaml
from support.cluster.certificates import ADDRESS
from support.cluster.cluster import LONG
from support.cluster.node import VAULT
from support.sources import ROOT
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.cluster.cluster import Cluster

# Short of what no cluster here has: names in DNS, processors, a vault in a pod.
ADAPTED: Final = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: {namespace}
resources:
  - kubernetes/overlays/vault
  - secret.yaml
patches:
  - target: {{kind: Deployment}}
    patch: |
      - op: add
        path: /spec/template/spec/hostAliases
        value: [{{ip: {address}, hostnames: [secret-events]}}]
      - op: replace
        path: /spec/template/spec/containers/0/resources/requests
        value: {{cpu: 10m, memory: 32Mi}}
      - {{op: replace, path: /spec/template/spec/containers/0/startupProbe/periodSeconds, value: 1}}
      - {{op: add, path: /spec/template/spec/containers/0/readinessProbe/periodSeconds, value: 1}}
sortOptions:
  order: legacy
  legacySortOptions:
    orderFirst: [Namespace, ServiceAccount, ConfigMap, Secret, SecretProviderClass]
    orderLast: [Deployment]
"""
SECRET: Final = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "aidbox"},
    "stringData": {"AIDBOX_LICENSE": "none"},
}


def spread(directory: str, namespace: str) -> str:
    """Puts the manifests and the tests' kustomization into a directory; `kubernetes` in it."""
    shutil.copytree(f"{ROOT}/kubernetes", f"{directory}/kubernetes", dirs_exist_ok=True)
    with open(f"{directory}/kustomization.yaml", "w") as file:
        file.write(ADAPTED.format(namespace=namespace, address=ADDRESS))
    with open(f"{directory}/secret.yaml", "w") as file:
        yaml.safe_dump(SECRET, file)
    return f"{directory}/kubernetes"


def class_of(*files: str) -> str:
    """A class with a file for each key of the secret `app`; keys have `.` for `/`."""
    objects = [
        {
            "objectName": name,
            "secretPath": "secret/data/aidbox/app",
            "secretKey": name.replace("/", "."),
        }
        for name in files
    ]
    parameters = {"roleName": "aidbox", "objects": yaml.safe_dump(objects)}
    spec = {"provider": "vault", "parameters": parameters}
    head = {"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass"}
    return yaml.safe_dump({**head, "metadata": {"name": "aidbox-secrets"}, "spec": spec})


def vault_config(*files: str) -> str:
    scope = {"resource_type": "Client", "id": "my-client"}
    return json.dumps(
        {"secret": {name: {"path": f"/run/vault-secrets/{name}", "scope": scope} for name in files}}
    )


class Hook:
    """The receiver of the manifests' webhook, in the cluster's network.

    Attributes:
        received: What arrived, in this order: time, and the event.
    """

    def __init__(self, cluster: Cluster, port: int = 9000) -> None:
        self.received: list[tuple[float, dict[str, Any]]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for event in content if isinstance(content, list) else [content]:
                    hook.received.append((time.time(), event))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """No log."""

        with cluster.network():
            self._server = ThreadingHTTPServer((ADDRESS, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def events(self, source: str = "", subject: str | None = None) -> list[dict[str, Any]]:
        """Events of secrets whose source holds a text."""
        return [
            event
            for _, event in list(self.received)
            if source in event["source"]
            and event["type"].startswith("io.syncd.secret.")
            and subject in {None, event.get("subject")}
        ]


@dataclass
class Probes:
    """Answers of the Service, asked ten times a second on connections of their own.

    Attributes:
        answered: How many were 200.
        failures: The others: seconds since the start, and why.
    """

    answered: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)


class Product:
    """A deployment in a namespace.

    Args:
        cluster: Where.
        namespace: Its namespace.
        selector: Labels of its pods and its Service.
    """

    def __init__(self, cluster: Cluster, namespace: str, selector: str) -> None:
        self.cluster, self.namespace, self._selector = cluster, namespace, selector

    def kubectl(self, *command: str, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *command, check=check)

    def get(self, *what: str) -> Any:
        return self.cluster.get("-n", self.namespace, *what)

    @property
    def pod(self) -> dict[str, Any]:
        """The newest pod that is not being deleted."""
        pods = self.get("pods", "-l", self._selector)["items"]
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        newest: dict[str, Any] = max(alive, key=lambda pod: pod["metadata"]["creationTimestamp"])
        return newest

    @property
    def mount(self) -> str:
        """The CSI volume of the pod, on the node."""
        volumes = f"/var/lib/kubelet/pods/{self.pod['metadata']['uid']}/volumes"
        return f"{volumes}/kubernetes.io~csi/vault-secrets/mount"

    def is_ready(self) -> bool:
        with contextlib.suppress(ValueError):
            conditions = self.pod["status"].get("conditions", [])
            return {"type": "Ready", "status": "True"}.items() <= {
                key: value
                for item in conditions
                if item["type"] == "Ready"
                for key, value in item.items()
            }.items()
        return False

    def wait_ready(self) -> None:
        wait_until(self.is_ready, self.describe, LONG)

    def describe(self) -> str:
        logs = ""
        for container in ("syncd", "syncd-wait", "aidbox"):
            name = f"--container={container}"
            logs += self.kubectl("logs", "-l", self._selector, name, "--tail=20", check=False)
        return self.kubectl("describe", "pods", check=False)[-5000:] + logs

    def container(self, name: str) -> dict[str, Any]:
        status = self.pod["status"]
        every = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        (found,) = (item for item in every if item["name"] == name)
        return dict(found)

    @property
    def ip(self) -> str:
        """The pod's address."""
        return str(self.pod["status"]["podIP"])

    def ask(self, path: str) -> tuple[int, bytes]:
        """Asks syncd's probes."""
        return self.cluster.request(f"{self.ip}:9753", path)

    def kill(self, container: str = "syncd") -> None:
        """Kills the processes of a container."""
        self.cluster.kill_container(self.container(container)["containerID"])

    def restarts(self, container: str = "syncd") -> int:
        return int(self.container(container)["restartCount"])

    def exec(self, *command: str, container: str = "syncd") -> str:
        name = self.pod["metadata"]["name"]
        return self.kubectl("exec", name, "-c", container, "--", *command)

    def generation(self) -> str:
        return self.cluster.shell(f"readlink {self.mount}/..data").strip()

    def republished(self, times: int) -> None:
        """Waits for the driver to have published the volume so often again."""
        name = self.pod["metadata"]["name"]

        def count() -> int:
            driver = ("logs", "daemonset/csi-secrets-store", "-c", "secrets-store", "--tail=-1")
            log = self.cluster.kubectl("-n", "kube-system", *driver)
            return sum(
                "node publish volume complete" in line and name in line for line in log.splitlines()
            )

        before = count()
        wait_until(lambda: count() >= before + times, "not republished", LONG)

    @property
    def address(self) -> str:
        """The Service's."""
        service = self.get("services", "-l", self._selector)["items"][0]["spec"]
        port = next(item["port"] for item in service["ports"] if item["name"] != "metrics")
        return f"{service['clusterIP']}:{port}"

    @contextlib.contextmanager
    def probing(self) -> Iterator[Probes]:
        """Asks the Service for /health all the while."""
        probes, over, address = Probes(), threading.Event(), self.address
        started = time.monotonic()

        def probe() -> None:
            with self.cluster.network():
                while not over.wait(0.1):
                    connection = http.client.HTTPConnection(address, timeout=5)
                    try:
                        connection.request("GET", "/health")
                        status = str(connection.getresponse().status)
                    except OSError as error:
                        status = repr(error)
                    finally:
                        connection.close()
                    if status == "200":
                        probes.answered += 1
                    else:
                        probes.failures.append((time.monotonic() - started, status))

        thread = threading.Thread(target=probe)
        thread.start()
        try:
            yield probes
        finally:
            over.set()
            thread.join()


def render(cluster: Cluster, namespace: str, **files: str) -> str:
    """The vault overlay for this cluster, with the vault's address and files of the test's own.

    Args:
        files: Contents by name: `class_`, `vault_config`, `syncd`.
    """
    with tempfile.TemporaryDirectory() as directory:
        kubernetes = spread(directory, namespace)
        places = {
            "class_": f"{kubernetes}/overlays/vault/secret-provider-class.yaml",
            "vault_config": f"{kubernetes}/components/syncd/vault-config.json",
            "syncd": f"{kubernetes}/components/syncd/syncd.yaml",
        }
        for name, content in files.items():
            with open(places[name], "w") as file:
                file.write(content)
        with open(places["class_"]) as file:
            class_ = yaml.safe_load(file)
        parameters = class_["spec"]["parameters"]
        parameters["vaultAddress"] = VAULT
        parameters["vaultCACertPath"] = f"{cluster.directory}/ca.crt"
        with open(places["class_"], "w") as file:
            yaml.safe_dump(class_, file)
        return cluster.kubectl("kustomize", directory)


@contextlib.contextmanager
def deployed(cluster: Cluster, namespace: str, **files: str) -> Iterator[Product]:
    """The vault overlay, applied, its pod ready."""
    with cluster.namespace(namespace):
        cluster.apply(render(cluster, namespace, **files))
        product = Product(cluster, namespace, "app.kubernetes.io/name=aidbox")
        wait_until(lambda: product.get("pods")["items"], product.describe)
        product.wait_ready()
        yield product
