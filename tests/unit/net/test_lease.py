"""One holder of a Lease at a time, and what it leaves behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest
from support.kubernetes import Kubernetes as Double
from support.waiting import DEADLINE, until

from syncd.config.cluster import server_url
from syncd.config.settings import Kubernetes
from syncd.core.errors import RefusedError, TemporaryError
from syncd.net.kubernetes import Cluster
from syncd.net.lease import BEGUN, Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from syncd.net.lease import LeaseTerm


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path) as cluster:
        yield cluster


class Pods:
    """Makes the Lease of each pod, over a connection of its own."""

    def __init__(self, cluster: Double) -> None:
        self._cluster = cluster
        self._open: list[Cluster] = []

    def lease(self, identity: str, *, duration: float = 15.0, **options: Any) -> Lease:
        settings = msgspec.convert(self._cluster.settings, Kubernetes)
        self._open.append(Cluster(settings, {}))
        return Lease(self._open[-1], "syncd", identity, duration=duration, **options)

    async def aclose(self) -> None:
        for cluster in self._open:
            await cluster.aclose()


@pytest.fixture
async def pods(cluster: Double) -> AsyncIterator[Pods]:
    pods = Pods(cluster)
    yield pods
    await pods.aclose()


def spec(cluster: Double) -> dict[str, Any]:
    found: dict[str, Any] = cluster.objects["leases", "syncd"]["spec"]
    return found


async def test_five_take_turns(cluster: Double, pods: Pods) -> None:
    """Never two of them at once, and one creates it; each hands it over at the end."""
    inside: list[str] = []
    turns: list[str] = []

    async def take(identity: str) -> None:
        async with pods.lease(identity, duration=3).hold():
            inside.append(identity)
            assert inside == [identity]
            seen = cluster.sent("GET", "leases")
            if len(turns) < 4:  # another one looks meanwhile
                await until(lambda: cluster.sent("GET", "leases") > seen)
            assert spec(cluster)["holderIdentity"] == identity
            inside.remove(identity)
            turns.append(identity)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(take, f"pod-{number}")
    assert sorted(turns) == [f"pod-{number}" for number in range(5)]
    assert spec(cluster)["holderIdentity"] == ""
    assert spec(cluster)["leaseTransitions"] == 4
    assert cluster.sent("POST", "leases", 201) == 1


async def test_a_holder_that_died(cluster: Double, pods: Pods) -> None:
    """Its term ends after the duration without a renewal, and what it began is known then.

    The same process, started again, need not wait; time is that of the process that waits.
    """
    cluster.create(
        "leases",
        "syncd",
        spec={"holderIdentity": "gone", "leaseDurationSeconds": 1, "renewTime": "2020-01-01"},
    )
    cluster.objects["leases", "syncd"]["metadata"]["annotations"] = {
        BEGUN: json.dumps({"aidbox/d1": "{}"}),
        "other": "kept",
    }
    again = pods.lease("gone")
    assert await again.has_begun()
    async with again.hold() as term:
        assert term.begun == {"aidbox/d1": "{}"}
    now = [0.0]
    cluster.objects["leases", "syncd"]["spec"]["holderIdentity"] = "gone"
    other = pods.lease("other", duration=0.03, clock=lambda: now[0])
    async with anyio.create_task_group() as tasks:

        async def take() -> None:
            async with other.hold() as term:
                assert spec(cluster)["holderIdentity"] == "other"
                await term.end("aidbox/d1")
                await term.begin("aidbox/d2", '{"id": "d2"}')
                await term.end("aidbox/d2")

        seen = cluster.sent("GET", "leases")
        tasks.start_soon(take)
        await until(lambda: cluster.sent("GET", "leases") > seen + 3)
        assert spec(cluster)["holderIdentity"] == "gone"
        now[0] = 16.0
    assert cluster.objects["leases", "syncd"]["metadata"]["annotations"] == {"other": "kept"}
    assert not await other.has_begun()


async def test_a_term_that_is_lost(cluster: Double, pods: Pods) -> None:
    """When another one took it, or it cannot be renewed in time: the work ends before that."""
    mine = pods.lease("mine", duration=0.9)

    async def fail(said: str, work: Callable[[LeaseTerm], Awaitable[object]]) -> None:
        with anyio.fail_after(DEADLINE), pytest.raises(TemporaryError, match=said):
            async with mine.hold() as term:
                await work(term)

    async def lose(_: LeaseTerm) -> None:
        with cluster.lock:
            taken = {**spec(cluster), "holderIdentity": "other"}
            cluster.store("leases", {**cluster.objects["leases", "syncd"], "spec": taken})
        await anyio.sleep_forever()

    async def wait(_: LeaseTerm) -> None:
        cluster.broken = True
        await anyio.sleep_forever()

    async def begin(term: LeaseTerm) -> None:
        cluster.objects.clear()
        await term.begin("a", "{}")

    await fail("has taken the Lease", lose)
    assert spec(cluster)["holderIdentity"] == "other"
    cluster.objects.clear()
    await fail("cannot renew the Lease syncd", wait)
    cluster.broken = False
    await fail("has taken the Lease syncd, or it was deleted", begin)


async def test_a_term_counts_from_the_request_that_won_it(
    cluster: Double, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from its answer: another one counts from when the API server wrote it."""
    now = [0.0]
    serve = cluster.serve

    def slow(verb: str, *request: Any) -> Any:
        answer = serve(verb, *request)
        now[0] += 10.0 * (verb == "POST")
        return answer

    monkeypatch.setattr(cluster, "serve", slow)
    with anyio.fail_after(DEADLINE), pytest.raises(TemporaryError, match="cannot renew the Lease"):
        async with pods.lease("mine", clock=lambda: now[0]).hold():
            await anyio.sleep_forever()
    assert cluster.sent("PUT", "leases") == 0


async def test_a_lost_term_ends_all_work_in_it(cluster: Double, pods: Pods) -> None:
    """At once where one task finds out, not at the next renewal; the body stays written down."""

    async def begin(term: LeaseTerm) -> None:
        taken = {**spec(cluster), "holderIdentity": "other"}
        with cluster.lock:
            cluster.store("leases", {**cluster.objects["leases", "syncd"], "spec": taken})
        with pytest.raises(TemporaryError):
            await term.begin("d2", "{}")

    async def work() -> None:
        async with pods.lease("mine", duration=1e6).hold() as term:
            await term.begin("d1", "{}")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin, term)
                await anyio.sleep_forever()

    with anyio.fail_after(DEADLINE), pytest.raises(TemporaryError, match="has taken the Lease"):
        await work()
    assert spec(cluster)["holderIdentity"] == "other"
    annotations = cluster.objects["leases", "syncd"]["metadata"]["annotations"]
    assert json.loads(annotations[BEGUN]) == {"d1": "{}"}


async def test_an_api_server_that_fails_at_the_reread(
    cluster: Double, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no loss of the term: the write is tried again."""
    serve = cluster.serve
    with anyio.fail_after(DEADLINE):
        async with pods.lease("mine").hold() as term:

            def conflict(verb: str, *request: Any) -> Any:
                return (409 if verb == "PUT" else 503), None

            monkeypatch.setattr(cluster, "serve", conflict)
            with pytest.raises(TemporaryError, match="answered 503"):
                await term.begin("d", "{}")
            monkeypatch.setattr(cluster, "serve", serve)
            await term.renew()
            assert term.lost is None
    annotations = cluster.objects["leases", "syncd"]["metadata"]["annotations"]
    assert json.loads(annotations[BEGUN]) == {"d": "{}"}


async def test_a_namespace_that_does_not_exist(
    cluster: Double, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server answers 404 to the POST as well: a mistake, and no reason to ask again."""
    monkeypatch.setattr(cluster, "serve", lambda *_: (404, None))
    with anyio.fail_after(DEADLINE), pytest.raises(RefusedError, match="no namespace hospital; c"):
        async with pods.lease("mine").hold():
            pass


async def test_a_change_by_another_client_is_no_loss(cluster: Double, pods: Pods) -> None:
    """A label that kubectl sets makes a new version, and stays."""
    async with pods.lease("mine").hold() as term:
        with cluster.lock:
            found = cluster.objects["leases", "syncd"]
            metadata = {**found["metadata"], "labels": {"a": "b"}}
            cluster.store("leases", {**found, "metadata": metadata})
        await term.begin("d", "{}")
    metadata = cluster.objects["leases", "syncd"]["metadata"]
    assert metadata["labels"] == {"a": "b"}
    assert json.loads(metadata["annotations"][BEGUN]) == {"d": "{}"}
    assert cluster.sent("PUT", "leases", 409) == 1


async def test_errors_of_the_work_are_its_own(cluster: Double, pods: Pods) -> None:
    """They are not wrapped in a group, and the next one can have the Lease at once."""
    with pytest.raises(RefusedError, match="mine"):
        async with pods.lease("mine").hold():
            raise RefusedError("mine")
    assert spec(cluster)["holderIdentity"] == ""


async def test_what_is_not_allowed(cluster: Double, pods: Pods, tmp_path: Path) -> None:
    """A missing right names where the rights are; a token that is not known is another matter."""
    cluster.denied.add(("POST", "leases"))
    with pytest.raises(RefusedError, match=r"answered 403; give .* kubernetes/components/repair"):
        async with pods.lease("mine").hold():
            pass
    (tmp_path / "token").write_text("other")
    with pytest.raises(RefusedError, match=r"answered 401; correct kubernetes\.token_file"):
        await pods.lease("mine").has_begun()


async def test_a_namespace_by_the_name_of_an_api_group(cluster: Double, pods: Pods) -> None:
    """The right that is missing is that of the resource, not of what the namespace is called."""
    cluster.settings["namespace"] = "apps"
    cluster.denied.add(("GET", "leases"))
    with pytest.raises(RefusedError, match="kubernetes/components/repair"):
        await pods.lease("mine").has_begun()


async def test_an_annotation_that_is_not_ours(cluster: Double, pods: Pods) -> None:
    """Nothing is done on top of it."""
    cluster.create("leases", "syncd", spec={})
    cluster.objects["leases", "syncd"]["metadata"]["annotations"] = {BEGUN: "x"}
    with pytest.raises(RefusedError, match="correct or remove the annotation"):
        await pods.lease("mine").has_begun()


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "https://10.0.0.1:443"),
        (
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"},
            "https://[fd00::1]:6443",
        ),
        ({}, None),
    ],
)
def test_where_the_server_is(environ: dict[str, str], url: str | None) -> None:
    """What Kubernetes puts into every pod."""
    assert server_url(Kubernetes(), environ) == url
    assert server_url(Kubernetes(server="https://x"), environ) == "https://x"


async def test_outside_of_a_cluster() -> None:
    """It is said where the server is looked for, and what the namespace is."""
    with pytest.raises(RefusedError, match="KUBERNETES_SERVICE_HOST is not set"):
        Cluster(Kubernetes(), {})
    with pytest.raises(RefusedError, match=r"set kubernetes\.namespace"):
        await Cluster(Kubernetes(server="https://x"), {}).namespace()
    assert await Cluster(Kubernetes(server="https://x", namespace="a"), {}).namespace() == "a"
