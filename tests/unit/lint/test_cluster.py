"""What a check says of actions that need a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from syncd.config.settings import Aidbox, Kubernetes, Rollout, Settings
from syncd.lint.cluster import check_cluster

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
