"""One cluster for all tests here; it is gone with the process that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cluster.binaries import binaries
from support.cluster.cluster import Cluster
from support.sources import need

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = ("buildah", "containerd", "ctr", "debootstrap", "etcd", "ip", "kubectl", "nft", "runc")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    need("tests/cluster/prepare", *TOOLS)
    with Cluster(binaries()) as cluster:
        yield cluster
