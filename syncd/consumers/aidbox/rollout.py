"""Rolls a workload when something changed that Aidbox reads only at its start (opt-in).

That is the vault config, and secrets in environment variables, which a setting names. A rollout is
begun as `kubectl rollout restart` does it: by an annotation of the pod template. Its value is made
of what changed, so that all installations that see one change write the same value, and only the
first of them makes a patch. They do so one after the other, by a Lease.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from syncd.consumers.aidbox.worker import Worker
from syncd.core.adoption import mailbox_of
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.event_data import SecretData, VaultConfigData
from syncd.net.kubernetes import MERGE_PATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from syncd.config.settings import Rollout as Settings
    from syncd.consumers.aidbox.leadership import Leadership
    from syncd.core.events import Event
    from syncd.core.model import Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.net.kubernetes import Cluster

ROLLOUT: Final = "rollout"
VAULT_CONFIG: Final = "syncd/vault-config"
"""The annotation for the vault config."""
SECRETS: Final = "syncd/secrets"
"""The annotation for the versions of secrets."""

_PLURALS: Final = {"Deployment": "deployments", "StatefulSet": "statefulsets"}
log = structlog.get_logger()


class Roller:
    """Rolls the workload of one consumer of kind `aidbox`.

    Args:
        consumer: Name of the consumer.
        settings: The workload.
        grant: Whose changes call for it.
        cluster: Makes one when it is needed; raises `RefusedError` outside of a cluster.
        leadership: Decides who acts.
        inventory: Every secret, as of the last commit.
        ledger: Holds the mailbox.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        consumer: str,
        settings: Settings,
        grant: Grant,
        *,
        cluster: Callable[[], Cluster],
        leadership: Callable[[], Leadership],
        inventory: Callable[[], Mapping[str, Known]],
        ledger: Ledger,
        rng: Random,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._leadership = leadership
        self._inventory = inventory
        self._worker = Worker(
            *(ROLLOUT, consumer, mailbox_of(consumer, ROLLOUT), grant),
            ledger=ledger,
            handle=self._handle,
            aclose=self._aclose,
            rng=rng,
        )

    async def run(self) -> None:
        """Rolls when it is due, until cancelled."""
        await self._worker.run()

    def wake(self) -> None:
        """Notifies it of new events in the mailbox. Call it from the event loop."""
        self._worker.wake()

    async def drained(self) -> None:
        """Returns when nothing is left to do, with no `wake` since."""
        await self._worker.drained()

    async def _aclose(self) -> None:
        """The connection is shared."""

    async def _handle(self, events: Sequence[Event]) -> None:
        wanted = self._wanted(events)
        if not wanted:
            return
        cluster = self._cluster()
        path = await self._path(cluster)
        if not (await self._find(cluster, path)).lacks(wanted):
            log.debug("rollout.done_before", name=self._settings.name)
            return
        async with self._leadership().hold():
            await self._patch(cluster, path, wanted)

    def _wanted(self, events: Sequence[Event]) -> dict[str, str]:
        """The annotations that the pod template should have because of some events."""
        wanted, inventory = {}, self._inventory()
        if any(isinstance(event.data, VaultConfigData) for event in events):
            entries = sorted(
                (name, known.entry.path, sorted(map(str, known.entry.scopes)))
                for name, known in inventory.items()
                if not known.entry.extra
            )
            wanted[VAULT_CONFIG] = _digest(entries)
        changed = {event.subject for event in events if isinstance(event.data, SecretData)}
        if changed & set(self._settings.secrets):
            versions = [
                (name, inventory[name].version if name in inventory else None)
                for name in sorted(self._settings.secrets)
            ]
            if all(version is not None for _, version in versions):
                wanted[SECRETS] = _digest(versions)
        return wanted

    async def _path(self, cluster: Cluster) -> str:
        namespace = self._settings.namespace or await cluster.namespace()
        kind, name = self._settings.kind, self._settings.name
        return f"/apis/apps/v1/namespaces/{namespace}/{_PLURALS[kind]}/{name}"

    async def _find(self, cluster: Cluster, path: str) -> _Workload:
        kind, name = self._settings.kind, self._settings.name
        answer = await cluster.request(f"cannot read {kind}/{name}", "GET", path)
        if answer.status == HTTPStatus.NOT_FOUND:
            namespace = self._settings.namespace or await cluster.namespace()
            problem = f"there is no {kind} {name} in the namespace {namespace}"
            raise RefusedError(problem, "correct rollout")
        return _Workload.decode(answer.body)

    async def _patch(self, cluster: Cluster, path: str, wanted: Mapping[str, str]) -> None:
        kind, name = self._settings.kind, self._settings.name
        found = await self._find(cluster, path)
        new = found.lacks(wanted)
        if not new:
            log.debug("rollout.done_before", name=name)
            return
        patch = {
            "metadata": {"resourceVersion": found.version},
            "spec": {"template": {"metadata": {"annotations": new}}},
        }
        content = msgspec.json.encode(patch)
        answer = await cluster.request(
            *(f"cannot patch {kind}/{name}", "PATCH", path, content, MERGE_PATCH)
        )
        if not answer.is_success:
            raise TemporaryError(f"{kind}/{name} was changed at the same time")
        log.info("rollout.begun", kind=kind, name=name, annotations=sorted(new))


class _Workload(msgspec.Struct):
    version: str
    annotations: dict[str, str]

    def lacks(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """What its annotations have not yet."""
        return {key: value for key, value in wanted.items() if self.annotations.get(key) != value}

    @classmethod
    def decode(cls, body: bytes) -> _Workload:
        """What matters of a Deployment or StatefulSet."""
        try:
            found = msgspec.json.decode(body, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            problem = "cannot read the workload: the answer is not what Kubernetes documents"
            raise RefusedError(problem, "correct kubernetes.server") from None
        return cls(found.metadata.resource_version, found.spec.template.metadata.annotations or {})


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Template(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


class _Spec(msgspec.Struct, frozen=True):
    template: _Template = _Template()


class _Document(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()
    spec: _Spec = _Spec()


def _digest(content: Any) -> str:  # noqa: ANN401 - what JSON can hold
    return hashlib.blake2b(msgspec.json.encode(content), digest_size=16).hexdigest()
