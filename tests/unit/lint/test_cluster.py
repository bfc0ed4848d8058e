"""What a check says of actions that need a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.kubernetes import Kubernetes as Double

from syncd.config.settings import Aidbox, Kubernetes, Rollout, Settings
from syncd.lint.cluster import check_cluster, check_rights

if TYPE_CHECKING:
    from pathlib import Path

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}


@pytest.mark.parametrize(
    ("actions", "url", "environ", "has_token", "codes"),
    [
        (("drop_cache",), "http://127.0.0.1:8080", POD, False, []),
        (("rollout",), "http://127.0.0.1:8080", {}, True, ["kubernetes-unusable"]),
        (("rollout",), "http://127.0.0.1:8080", POD, False, ["kubernetes-unusable"]),
        (("rollout",), "http://127.0.0.1:8080", POD, True, []),
        (("recreate_destinations",), "http://127.0.0.1:8080", {}, False, []),
        (("recreate_destinations",), "http://aidbox:8080", POD, True, []),
        (("recreate_destinations",), "http://aidbox:8080", POD, False, ["kubernetes-unusable"]),
        (("recreate_destinations",), "http://localhost:8080", POD, True, ["replicas-unlisted"]),
    ],
)
def test_actions_that_need_a_cluster(
    tmp_path: Path,
    actions: Any,
    url: str,
    environ: dict[str, str],
    codes: list[str],
    *,
    has_token: bool,
) -> None:
    """A cluster for a rollout, a token in a pod, and every replica."""
    token = tmp_path / "token"
    if has_token:
        token.write_text("x")
    consumer = Aidbox(
        name="aidbox",
        urls=(url,),
        client_id="c",
        client_secret_file="/s",
        actions=actions,
        rollout=Rollout(name="aidbox") if "rollout" in actions else None,
    )
    settings = Settings(
        vault_config="/v", consumers=(consumer,), kubernetes=Kubernetes(token_file=str(token))
    )
    found = check_cluster(settings, "syncd.yaml", environ)
    assert [item.code for item in found] == codes
    assert all(item.where == "consumers[0].actions" for item in found)


def test_rights_that_are_missing(tmp_path: Path) -> None:
    """Each by the verb and the object that it is for; none where all are there."""
    with Double(tmp_path) as cluster:
        consumer = Aidbox(
            name="aidbox",
            urls=("http://aidbox:8080",),
            client_id="c",
            client_secret_file="/s",
            actions=("recreate_destinations", "rollout"),
            rollout=Rollout(name="aidbox"),
        )
        settings = Settings(
            vault_config="/v",
            consumers=(consumer,),
            kubernetes=msgspec.convert(cluster.settings, Kubernetes),
        )
        assert check_rights(settings, "syncd.yaml", {}) == []
        cluster.denied = {("PUT", "leases"), ("PATCH", "deployments")}
        found = check_rights(settings, "syncd.yaml", {})
        assert [item.message for item in found] == [
            "may not update leases/syncd",
            "may not patch deployments/aidbox",
        ]
        assert {(item.code, item.where) for item in found} == {
            ("kubernetes-unusable", "consumers[0].actions")
        }
        (tmp_path / "token").write_text("other")
        (item,) = check_rights(settings, "syncd.yaml", {})
        assert "cannot ask for rights" in item.message
    assert check_rights(Settings(vault_config="/v"), "syncd.yaml", POD) == []
