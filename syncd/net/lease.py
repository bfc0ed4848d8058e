"""A Lease of `coordination.k8s.io/v1`: one holder at a time, among the pods of a cluster.

The rules are those of client-go's `leaderelection`: the holder renews its Lease; another one takes
it when it saw no renewal for the whole duration, by its own clock, as clocks of nodes differ. Each
write names the `resourceVersion` that it has read, so of two that are made at the same time one
gets 409 ("API Concepts", resource versions). A holder that cannot renew in time stops before
another one may begin.

What a holder has begun is an annotation, so that the next one can complete it if the pod is gone.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec
import structlog

from syncd.core.errors import RefusedError, SyncdError, TemporaryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from syncd.net.kubernetes import Cluster

DURATION: Final = 15.0
"""Seconds after the last renewal before another one may take it; client-go's default."""

BEGUN: Final = "syncd/begun"
"""The annotation with what was begun and not ended."""

_RENEWALS: Final = 3
"""Renewals in a duration; when two are missed, the term is over."""
_ATTEMPTS: Final = 5
"""Attempts at a renewal in the time until the next one is due."""
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
"""Seconds between two looks at a Lease that another one holds; client-go's retry period."""
_RELEASE_LIMIT: Final = 2.0
log = structlog.get_logger()


class Lease:
    """The Lease of one purpose.

    Args:
        cluster: Where it is.
        name: Its name, in the namespace of the pod.
        identity: Of this process, and of no other one that runs at the same time.
        duration: As `DURATION`.
        clock: Monotonic, seconds.

    Attributes:
        name: Its name.
        clock: The clock of the terms.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        identity: str,
        *,
        duration: float = DURATION,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self.name = name
        self._identity = identity
        self._duration = duration
        self.clock = clock
        self._own = anyio.Lock()

    async def has_begun(self) -> bool:
        """Whether a holder has begun something and not ended it.

        Raises:
            TemporaryError: The API server does not answer.
            RefusedError: It does not allow it.
        """
        lease = await self._read()
        return lease is not None and bool(_begun(lease))

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[LeaseTerm]:
        """Waits for the Lease, and holds it until the block ends.

        Raises:
            TemporaryError: The API server does not answer, or the Lease was lost.
            RefusedError: It does not allow it.
        """
        async with self._own:  # two tasks of this process have one identity
            term = await self._acquire()
            error: SyncdError | None = None
            try:
                async with anyio.create_task_group() as tasks:
                    term.work = tasks.cancel_scope
                    tasks.start_soon(self._keep, term)
                    try:
                        yield term
                    except SyncdError as failure:  # not as a part of a group
                        error = failure
                    tasks.cancel_scope.cancel()
            finally:
                with anyio.move_on_after(_RELEASE_LIMIT, shield=True):
                    await self._release(term)
            if term.lost is not None:
                raise term.lost
            if error is not None:
                raise error

    async def _acquire(self) -> LeaseTerm:
        seen: object = None
        since, pause = self.clock(), _FIRST_PAUSE
        while True:
            lease = await self._read()
            now = self.clock()
            if lease is None:
                found = await self._write("POST", await self._path(), self._taken({}))
            else:
                spec = lease.get("spec") or {}
                holder = spec.get("holderIdentity") or ""
                record = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
                if record != seen:
                    seen, since = record, now
                lasts = float(spec.get("leaseDurationSeconds") or self._duration)
                if holder not in ("", self._identity) and now - since < lasts:
                    await anyio.sleep(pause)
                    pause = min(_LONGEST_PAUSE, pause * 2)
                    continue
                found = await self.write(self._taken(lease))
            if found is not None:
                log.info("lease.acquired", lease=self.name)
                # another one counts from when the API server wrote it: not before, and perhaps
                # long before its answer
                return LeaseTerm(self, found, now)

    async def _keep(self, term: LeaseTerm) -> None:
        """Renews the Lease, and ends the term when that fails for too long."""
        interval = self._duration / _RENEWALS
        pause, problem = 0.0, "the API server does not answer"
        while term.lost is None:
            now = self.clock()
            # a request that is slow does not extend the term
            with anyio.move_on_after(term.renewed + 2 * interval - now):
                await anyio.sleep(max(pause, term.renewed + interval - now))
                try:
                    await term.renew()
                    pause = 0.0
                except TemporaryError as error:
                    pause, problem = interval / _ATTEMPTS, error.problem
                except RefusedError as error:
                    term.lose(f"cannot renew the Lease {self.name}: {error.problem}")
            if self.clock() - term.renewed >= 2 * interval:
                term.lose(f"cannot renew the Lease {self.name}: {problem}")

    async def _release(self, term: LeaseTerm) -> None:
        """Lets the next one have it at once; otherwise it waits for the end of the duration."""
        if term.lost is not None:
            return
        try:
            await term.update(holderIdentity="")
        except SyncdError as error:
            log.warning("lease.not_released", lease=self.name, reason=str(error))

    def _taken(self, lease: dict[str, Any]) -> dict[str, Any]:
        """The Lease with this process as its holder."""
        spec, now = dict(lease.get("spec") or {}), _micro_time()
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + bool(lease)
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "renewTime": now,
        }
        new = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        return {**new, "metadata": {"name": self.name}, **lease, "spec": spec}

    async def _path(self) -> str:
        namespace = await self._cluster.namespace()
        return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    async def _read(self) -> dict[str, Any] | None:
        path = f"{await self._path()}/{self.name}"
        answer = await self._cluster.request(f"cannot read the Lease {self.name}", "GET", path)
        return None if answer.status == HTTPStatus.NOT_FOUND else _decoded(answer.body)

    async def reread(self) -> dict[str, Any] | None:
        """The Lease as it is now; None where this process does not hold it any longer."""
        lease = await self._read()
        if lease is None or (lease.get("spec") or {}).get("holderIdentity") != self._identity:
            return None
        return lease

    async def write(self, lease: dict[str, Any]) -> dict[str, Any] | None:
        """Writes it over the version that was read; None where it was changed meanwhile."""
        return await self._write("PUT", f"{await self._path()}/{self.name}", lease)

    async def _write(self, method: str, path: str, lease: dict[str, Any]) -> dict[str, Any] | None:
        failed, content = f"cannot write the Lease {self.name}", msgspec.json.encode(lease)
        answer = await self._cluster.request(failed, method, path, content)
        if method == "POST" and answer.status == HTTPStatus.NOT_FOUND:
            problem = f"{failed}: there is no namespace {await self._cluster.namespace()}"
            raise RefusedError(problem, "correct kubernetes.namespace or kubernetes.server")
        return _decoded(answer.body) if answer.is_success else None


class LeaseTerm:
    """A term as the holder of a Lease.

    Attributes:
        renewed: When the newest write that succeeded was sent, by the clock of the `Lease`.
        lost: Why it is over before its end, or None.
        work: What is cancelled when it is lost.
    """

    def __init__(self, lease: Lease, content: dict[str, Any], renewed: float) -> None:
        self._lease = lease
        self._content = content
        self._begun = dict(_begun(content))
        self._writing = anyio.Lock()
        self.renewed = renewed
        self.lost: TemporaryError | None = None
        self.work = anyio.CancelScope()

    def lose(self, problem: str) -> None:
        """Ends it, with all that is done in it."""
        if self.lost is None:
            self.lost = TemporaryError(problem)
            log.warning("lease.lost", lease=self._lease.name, reason=problem)
            self.work.cancel()

    @property
    def begun(self) -> Mapping[str, str]:
        """What was begun and not ended, by name."""
        return self._begun

    async def begin(self, name: str, text: str) -> None:
        """Writes what is begun into the Lease.

        Raises:
            TemporaryError: The API server does not answer, or the Lease was lost.
            RefusedError: It does not take it.
        """
        self._begun[name] = text
        await self.update()

    async def end(self, name: str) -> None:
        """Takes it out again; errors as for `begin`."""
        if self._begun.pop(name, None) is not None:
            await self.update()

    async def renew(self) -> None:
        """Begins the duration anew; errors as for `begin`."""
        await self.update()

    async def update(self, **spec: str) -> None:
        """Writes the Lease with what is begun, and these fields; errors as for `begin`."""
        async with self._writing:
            while self.lost is None:
                sent = self._lease.clock()
                found = await self._lease.write(self._merged(spec))
                if found is not None:
                    self._content, self.renewed = found, sent
                    return
                # kubectl may have set a label; only another holder ends the term
                current = await self._lease.reread()
                if current is None:
                    problem = f"another installation has taken the Lease {self._lease.name}"
                    self.lose(f"{problem}, or it was deleted")
                else:
                    self._content = current
        raise self.lost

    def _merged(self, spec: Mapping[str, str]) -> dict[str, Any]:
        metadata = dict(self._content.get("metadata") or {})
        annotations = dict(metadata.get("annotations") or {})
        annotations.pop(BEGUN, None)
        if self._begun:
            annotations[BEGUN] = msgspec.json.encode(self._begun).decode()
        metadata["annotations"] = annotations
        renewed = {**self._content["spec"], "renewTime": _micro_time(), **spec}
        return {**self._content, "metadata": metadata, "spec": renewed}


def _begun(lease: Mapping[str, Any]) -> dict[str, str]:
    annotations = (lease.get("metadata") or {}).get("annotations") or {}
    try:
        return msgspec.json.decode(str(annotations.get(BEGUN, "{}")), type=dict[str, str])
    except msgspec.DecodeError:
        raise RefusedError(
            f"cannot use the Lease: its annotation {BEGUN} is not what syncd writes",
            "correct or remove the annotation",
        ) from None


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = "cannot use the Lease: the answer is not what Kubernetes documents"
        raise RefusedError(problem, "correct kubernetes.server") from None


def _micro_time() -> str:
    """Now, as a `MicroTime` is written."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
