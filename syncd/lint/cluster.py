"""Actions of a consumer of kind `aidbox` that need a cluster, or every replica of Aidbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from syncd.config.settings import Aidbox
from syncd.core.findings import finding, key_path
from syncd.net.kubernetes import server_url, token_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from syncd.config.settings import Settings
    from syncd.core.findings import Finding

_ACTING: Final = frozenset(("recreate_destinations", "rollout"))
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
