"""Actions of a consumer of kind `aidbox` that need a cluster, or every replica of Aidbox.

Whether syncd has the rights that they need is asked by a SelfSubjectAccessReview, which every
service account may make, and which changes nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

import anyio
import msgspec

from syncd.config.cluster import server_url, token_file
from syncd.config.settings import Aidbox
from syncd.core.errors import RefusedError, SyncdError
from syncd.core.findings import finding, key_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding

_ACTING: Final = frozenset(("recreate_destinations", "rollout"))
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_LOOPBACK: Final = ("127.", "::1", "localhost")


def check_cluster(settings: Settings, source: str, environ: Mapping[str, str]) -> list[Finding]:
    """What makes `recreate_destinations` and `rollout` impossible here, or wrong."""
    url = server_url(settings.kubernetes, environ)
    return [
        found
        for index, consumer in enumerate(settings.consumers)
        if isinstance(consumer, Aidbox) and _ACTING & set(consumer.actions)
        for found in _check(settings, consumer, source, ("consumers", index, "actions"), url)
    ]


def check_rights(settings: Settings, source: str, environ: Mapping[str, str]) -> list[Finding]:
    """The rights that actions lack, as the API server says; blocks for a limited time."""
    if server_url(settings.kubernetes, environ) is None:
        return []
    needed = {
        right: key_path("consumers", index, "actions")
        for index, consumer in reversed(list(enumerate(settings.consumers)))
        if isinstance(consumer, Aidbox) and _ACTING & set(consumer.actions)
        for right in _rights(settings, consumer)
    }
    hint = "apply kubernetes/components/repair, and for a rollout kubernetes/components/rollout"
    try:
        missing = anyio.run(_missing, settings, environ, list(needed))
    except SyncdError as error:
        where = "kubernetes" if not needed else next(iter(needed.values()))
        fix = error.remedy or hint
        return [finding("kubernetes-unusable", source, where, error.problem, fix)] if needed else []
    return [
        finding("kubernetes-unusable", source, needed[right], f"may not {right}", hint)
        for right in missing
    ]


class _Right(NamedTuple):
    verb: str
    group: str
    resource: str
    name: str = ""
    namespace: str | None = None

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{self.name and '/'}{self.name}"


def _rights(settings: Settings, consumer: Aidbox) -> Iterator[_Right]:
    group, lease = "coordination.k8s.io", settings.kubernetes.lease
    yield _Right("create", group, "leases")
    yield _Right("get", group, "leases", lease)
    yield _Right("update", group, "leases", lease)
    if (rollout := consumer.rollout) is not None:
        for verb in ("get", "patch"):
            of = (f"{rollout.kind.lower()}s", rollout.name, rollout.namespace)
            yield _Right(verb, "apps", *of)


async def _missing(
    settings: Settings, environ: Mapping[str, str], rights: list[_Right]
) -> list[_Right]:
    from syncd.net.kubernetes import Cluster  # noqa: PLC0415 - the daemon imports this module

    cluster = Cluster(settings.kubernetes, environ)
    missing = []
    try:
        for right in rights:
            namespace = right.namespace or await cluster.namespace()
            asked = {**right._asdict(), "namespace": namespace}
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            answer = await cluster.request(
                *("cannot ask for rights", "POST", _REVIEWS, msgspec.json.encode(review))
            )
            if not msgspec.json.decode(answer.body, type=_Review).status.allowed:
                missing.append(right)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = "cannot ask for rights: the answer is not what Kubernetes documents"
        raise RefusedError(problem, "correct kubernetes.server") from None
    finally:
        await cluster.aclose()
    return missing


class _Status(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _Status = _Status()


def _check(
    settings: Settings, consumer: Aidbox, source: str, at: tuple[str | int, ...], url: str | None
) -> Iterator[Finding]:
    where, token = key_path(*at), token_file(settings.kubernetes)
    if url is None and consumer.rollout is not None:
        message = "rollout needs a cluster, and KUBERNETES_SERVICE_HOST is not set"
        hint = "run syncd in a pod, set kubernetes.server, or remove rollout"
        yield finding("kubernetes-unusable", source, where, message, hint)
    elif url is not None and not os.access(token, os.R_OK):
        message = f"cannot read {token}, the token of the pod's service account"
        hint = "mount it in the container of syncd, as kubernetes/components/repair does"
        yield finding("kubernetes-unusable", source, where, message, hint)
    hosts = [urlsplit(item).hostname or "" for item in consumer.urls]
    if (
        url is not None
        and "recreate_destinations" in consumer.actions
        and len(hosts) == 1
        and hosts[0].startswith(_LOOPBACK)
    ):
        message = "recreate_destinations must ask every replica, and urls names that of this pod"
        hint = "name a headless service in urls, with resolve: all"
        yield finding("replicas-unlisted", source, where, message, hint)
