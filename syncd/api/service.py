"""The API as the daemon runs it: opened once, and kept over a reload of everything else.

Starlette and uvicorn are imported when an address is configured: a sidecar without one does
not pay for them.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.api.sockets import Inherited, Listener, inherit, make_tcp, make_unix, set_access
from syncd.api.streams import Broadcast
from syncd.api.subscribers import Subscribers
from syncd.api.systemd_credentials import CredentialServer
from syncd.config.settings import Credentials, RelaySettings, grant

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskStatus

    from syncd.api.server import Server
    from syncd.api.status import Facts
    from syncd.config.settings import Api as ApiSettings, Settings
    from syncd.core.events import Commit, Stamp
    from syncd.ledger.ledger import Ledger
    from syncd.telemetry.metrics import Metrics

GRACE: Final = 1.0
"""Seconds that requests have to end at shutdown."""

MOST_CALLERS: Final = 2048
MOST_PROBES: Final = 64
"""Connections at a time, on the Unix socket and on `api.listen`."""

_DESK_MODE: Final = 0o600
_DESCRIPTORS: Final = 8192
_RESERVED: Final = 256
log = structlog.get_logger()


@dataclass(slots=True)
class _Endpoint:
    """An address that is served, and from which settings that came."""

    settings: object
    listener: Listener
    server: Server
    broadcast: Broadcast | None = None


@dataclass(slots=True)
class _Desk:
    """Where systemd asks for credentials, and what ends the answering there."""

    listener: Listener
    server: CredentialServer
    scope: anyio.CancelScope


class Service:
    """Serves the Unix socket, the probes and systemd's credentials.

    Args:
        ledger: Event log and mailboxes.
        stamp: What goes on each event.
        metrics: What is scraped.
        facts: What the daemon knows now.
        settled: Set when the first pass over the mount is done.
        read: Gives a secret's value, or None while it changes; see `CredentialServer`.
    """

    def __init__(
        self,
        ledger: Ledger,
        stamp: Stamp,
        metrics: Metrics,
        facts: Callable[[], Facts],
        settled: anyio.Event,
        *,
        read: Callable[[str], bytes | None],
    ) -> None:
        self._ledger = ledger
        self._stamp = stamp
        self._metrics = metrics
        self._facts = facts
        self._read = read
        self._settled = settled
        self._last = 0
        self._inherited = Inherited()
        self._api: _Endpoint | None = None
        self._probes: _Endpoint | None = None
        self._desk: _Desk | None = None
        self._tasks: anyio.abc.TaskGroup
        self._broadcasting: anyio.CancelScope | None = None

    def committed(self, commit: Commit) -> None:
        """Tells subscribers of a commit. Call it from the event loop."""
        if commit.events:
            self._last = max(self._last, commit.events[-1].sequence)
            if self._api is not None and self._api.broadcast is not None:
                self._api.broadcast.publish(commit.events)

    async def run(
        self,
        settings: Settings | RelaySettings,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until cancelled; reports as started when it accepts connections.

        Raises:
            ConfigurationError: An address or the group means nothing here.
            ListenError: An address cannot be listened on.
            StateError: The ledger cannot be used.
        """
        _, self._last = await anyio.to_thread.run_sync(self._ledger.span)
        self._inherited = inherit(os.environ)
        for name in self._inherited.ignored:
            hint = "name it api, probes or credentials, one of each"
            log.warning("api.socket_ignored", name=name, hint=hint)
        try:
            async with anyio.create_task_group() as self._tasks:
                await self.reconfigure(settings)
                task_status.started()
                await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop(self._api)
                await self._stop(self._probes)
                used = (self._api, self._probes, self._desk)
                mine = self._inherited
                for listener in {
                    *(item.listener for item in used if item is not None),
                    *filter(None, (mine.api, mine.probes, mine.credentials)),
                }:
                    await anyio.to_thread.run_sync(listener.close)

    async def reconfigure(self, settings: Settings | RelaySettings) -> None:
        """Serves what the settings say; streams go on unless something about them changed.

        Addresses are opened before anything is closed, so a failure leaves everything as it was.

        Raises:
            ConfigurationError: An address or the group means nothing here.
            ListenError: An address cannot be listened on.
        """
        wanted = settings.api
        api = (wanted.socket, wanted.socket_mode, wanted.socket_group, wanted.subscribers)
        # a relay has no files, and so no values to answer with
        credentials = Credentials() if isinstance(settings, RelaySettings) else settings.credentials
        opened: list[Listener | None] = []
        try:
            opened.append(new_api := await self._open_api(wanted, api))
            opened.append(new_probes := await self._open_probes(wanted))
            new_desk = await self._open_desk(credentials)
        except BaseException:
            kept = [item.listener for item in (self._api, self._probes) if item is not None]
            for listener in opened:
                if listener is not None and listener not in kept:
                    await anyio.to_thread.run_sync(listener.close)
            raise
        if self._api is None or self._api.settings != api:
            await self._serve_api(wanted, api, new_api)
        if self._probes is None or self._probes.listener is not new_probes:
            await self._serve_probes(wanted, new_probes)
        await self._serve_desk(credentials, new_desk)

    async def _open_api(self, settings: ApiSettings, wanted: object) -> Listener | None:
        """The listener to use: the one there is, if the path is the same."""
        if self._inherited.api is not None:
            return self._inherited.api
        if not settings.socket:
            return None
        current = None if self._api is None else self._api.listener
        mode, group = settings.socket_mode, settings.socket_group
        if self._api is not None and current is not None and current.path == settings.socket:
            if self._api.settings != wanted:
                await anyio.to_thread.run_sync(set_access, settings.socket, mode, group)
            return current
        return await anyio.to_thread.run_sync(make_unix, settings.socket, mode, group)

    async def _open_probes(self, settings: ApiSettings) -> Listener | None:
        if self._inherited.probes is not None:
            return self._inherited.probes
        if self._probes is not None and self._probes.settings == settings.listen:
            return self._probes.listener
        return (
            await anyio.to_thread.run_sync(make_tcp, settings.listen) if settings.listen else None
        )

    async def _open_desk(self, settings: Credentials) -> Listener | None:
        if self._inherited.credentials is not None:
            return self._inherited.credentials
        if self._desk is not None and self._desk.listener.path == settings.socket:
            return self._desk.listener
        if not settings.socket:
            return None
        key = "credentials.socket"
        return await anyio.to_thread.run_sync(make_unix, settings.socket, _DESK_MODE, None, key)

    async def _serve_desk(self, settings: Credentials, listener: Listener | None) -> None:
        granted = {(item.unit, item.credential): item.secret for item in settings.grants}
        if self._desk is not None and self._desk.listener is listener:
            self._desk.server.grants = granted
            return
        if self._desk is not None:
            self._desk.scope.cancel()
            await anyio.to_thread.run_sync(self._desk.listener.close)
            self._desk = None
        if listener is None:
            return
        server = CredentialServer(
            listener.socket, granted, self._read, ready=self._settled, metrics=self._metrics
        )
        self._desk = _Desk(listener, server, await self._tasks.start(_answer, server))
        log.info("credentials.listening", socket=listener.address, grants=len(granted))

    async def _serve_api(
        self, settings: ApiSettings, key: object, listener: Listener | None
    ) -> None:
        before, self._api = self._api, None
        await self._stop(before)
        if before is not None and before.listener is not listener:
            await anyio.to_thread.run_sync(before.listener.close)
        if listener is None:
            return
        from syncd.api.app import Api  # noqa: PLC0415 - see the module's docstring
        from syncd.api.server import Server  # noqa: PLC0415

        broadcast = Broadcast(
            self._ledger, self._stamp, self._metrics, lambda: self._facts().inventory, self._last
        )
        granted = {item.uid: (item.name, grant(item.scope)) for item in settings.subscribers}
        callers, most = Subscribers(granted), _room_for(MOST_CALLERS)
        api = Api(callers, broadcast, self._ledger, self._facts, self._settled.wait)
        server = Server(api.app(), most, lambda accepted: callers.share(accepted, most))
        await server.start(listener.socket)
        await self._tasks.start(self._broadcast, broadcast)
        self._api = _Endpoint(key, listener, server, broadcast)
        log.info("api.listening", socket=listener.address, subscribers=len(granted))

    async def _broadcast(
        self, broadcast: Broadcast, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.CancelScope() as self._broadcasting:
            task_status.started()
            await broadcast.run()

    async def _serve_probes(self, settings: ApiSettings, listener: Listener | None) -> None:
        before, self._probes = self._probes, None
        await self._stop(before)
        if before is not None and before.listener is not listener:
            await anyio.to_thread.run_sync(before.listener.close)
        if listener is None:
            return
        from syncd.api.app import Probes  # noqa: PLC0415
        from syncd.api.server import Server  # noqa: PLC0415

        server = Server(Probes(self._facts, self._metrics).app(), MOST_PROBES)
        await server.start(listener.socket)
        self._probes = _Endpoint(settings.listen, listener, server)
        log.info("probes.listening", address=listener.address)

    async def _stop(self, endpoint: _Endpoint | None) -> None:
        if endpoint is None:
            return
        if endpoint.broadcast is not None:
            endpoint.broadcast.close()
        await endpoint.server.stop(GRACE)
        if endpoint.broadcast is not None and self._broadcasting is not None:
            self._broadcasting.cancel()


async def _answer(server: CredentialServer, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
    with anyio.CancelScope() as scope:
        task_status.started(scope)
        await server.run()


def _room_for(connections: int) -> int:
    """Raises the limit of open files as far as it may, and tells how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft - _RESERVED)
