"""The API as the daemon runs it: three addresses, which stay open while an engine is replaced.

The Unix socket, the probes' TCP port and the socket for systemd's credentials are opened, served,
replaced and closed in one way, by an `_Endpoint` each.

Starlette and uvicorn are imported when an address is configured: a sidecar without one does
not pay for them.
"""

from __future__ import annotations

import os
import resource
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import structlog

from syncd.api.admission import Newest, Shares
from syncd.api.floods import Floods
from syncd.api.positions import GrantPositions
from syncd.api.sockets import Listener, inherit, make_tcp, make_unix
from syncd.api.streams import Broadcast
from syncd.api.subscribers import Subscribers
from syncd.api.systemd_credentials import CredentialServer
from syncd.config.settings import Api as ApiSettings, grant
from syncd.core.errors import StateError
from syncd.ledger.numbering import Base, grant_key
from syncd.system.accounts import unmapped_uid
from syncd.system.lean_import import import_http_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from syncd.api.status import DaemonStatus
    from syncd.api.systemd_credentials import CredentialSource
    from syncd.core.events import Commit, Stamp
    from syncd.core.model import Grant
    from syncd.ledger.ledger import Ledger
    from syncd.ledger.reads import Reads
    from syncd.telemetry.metrics import Metrics

    Stop = Callable[[], Awaitable[None]]

GRACE: Final = 1.0
"""Seconds that requests have to end at shutdown."""

MOST_CALLERS: Final = 2048
"""Simultaneous connections to the Unix socket."""

MOST_PROBES: Final = 64
"""Simultaneous connections to `api.listen`."""

_CREDENTIALS_MODE: Final = 0o600
_DESCRIPTORS: Final = 8192
_RESERVED: Final = 256
log = structlog.get_logger()


class _Endpoint:
    """One address that is served, or none.

    `open` prepares a listener, which `switch` then serves and `abandon` closes.

    Args:
        inherited: The socket that systemd passed for it; used regardless of the configuration.
    """

    def __init__(self, inherited: Listener | None) -> None:
        self._inherited = inherited
        self._listener: Listener | None = None
        self._address = ""
        self._next: Listener | None = None
        self._next_address = ""
        self._settings: object = None
        self._stop: Stop | None = None

    async def open(self, address: str, make: Callable[[], Listener]) -> Listener | None:
        """Opens an address, or keeps the present listener if the address has not changed.

        Args:
            address: As configured; empty for none.
            make: Opens it. Blocks.
        """
        if self._inherited is not None:
            self._next = self._inherited
        elif address == self._address:
            self._next = self._listener
        else:
            self._next = await anyio.to_thread.run_sync(make) if address else None
        self._next_address = address
        return self._next

    async def abandon(self) -> None:
        """Closes what `open` has opened, unless it is in use."""
        if self._next not in (None, self._listener, self._inherited):
            await anyio.to_thread.run_sync(self._next.close)
        self._next, self._next_address = self._listener, self._address

    async def switch(self, settings: object, serve: Callable[[Listener], Awaitable[Stop]]) -> None:
        """Serves what `open` has opened; does nothing unless it or the settings have changed.

        Args:
            settings: Everything else that the serving depends on.
            serve: Starts serving, and returns what stops it.
        """
        before, self._address = self._listener, self._next_address
        if self._next is before and settings == self._settings:
            return
        await self._end()
        if before is not None and before is not self._next:
            await anyio.to_thread.run_sync(before.close)
        self._listener, self._settings = self._next, settings
        if self._listener is not None:
            self._stop = await serve(self._listener)

    async def aclose(self) -> None:
        """Stops serving and closes the address."""
        await self._end()
        for listener in (self._listener, self._inherited):
            if listener is not None:
                await anyio.to_thread.run_sync(listener.close)

    async def _end(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            await stop()


class Service:
    """Serves the Unix socket, the probes and systemd's credentials.

    Args:
        ledger: Event log and mailboxes.
        stamp: The attributes that are added to events.
        metrics: The metrics to serve.
        status: Returns the state of the daemon now.
        settled: Set when the first scan is done.
    """

    def __init__(
        self,
        ledger: Ledger,
        stamp: Stamp,
        metrics: Metrics,
        status: Callable[[], DaemonStatus],
        settled: anyio.Event,
    ) -> None:
        self._ledger = ledger
        self._stamp = stamp
        self._metrics = metrics
        self._status = status
        self._settled = settled
        self._last = 0
        self._access: tuple[int, str | None] | None = None
        self._broadcast: Broadcast | None = None
        self._credential_server = CredentialServer(ready=settled, metrics=metrics)
        self._tasks: anyio.abc.TaskGroup
        self._api: _Endpoint
        self._probes: _Endpoint
        self._credentials: _Endpoint
        self._started = anyio.Event()

    def committed(self, commit: Commit) -> None:
        """Sends the events of a commit to subscribers. In the event loop only."""
        if commit.events:
            self._last = max(self._last, commit.events[-1].sequence)
            if self._broadcast is not None:
                self._broadcast.publish(commit.events)

    async def run(
        self,
        settings: ApiSettings,
        credentials: CredentialSource | None,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until cancelled; reports as started when it accepts connections.

        Raises:
            ConfigurationError: An address or the group means nothing on this machine.
            ListenError: An address cannot be listened on.
            StateError: The ledger cannot be used.
        """
        _, self._last = await anyio.to_thread.run_sync(self._ledger.span)
        inherited = inherit(os.environ)
        for name in inherited.ignored:
            hint = "name it api, probes or credentials, one of each"
            log.warning("api.socket_ignored", name=name, hint=hint)
        self._api = _Endpoint(inherited.api)
        self._probes = _Endpoint(inherited.probes)
        self._credentials = _Endpoint(inherited.credentials)
        try:
            async with anyio.create_task_group() as self._tasks:
                await self._reconfigure(settings, credentials)
                self._started.set()
                task_status.started()
                await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for endpoint in (self._api, self._probes, self._credentials):
                    await endpoint.aclose()

    async def reconfigure(
        self, settings: ApiSettings, credentials: CredentialSource | None
    ) -> None:
        """Applies new settings; streams go on unless their own settings have changed.

        New addresses are opened before anything is closed: a failure leaves everything as it was.

        Args:
            settings: The section `api`.
            credentials: The secrets that systemd's units get, or None for none.

        Raises:
            ConfigurationError: An address or the group means nothing on this machine.
            ListenError: An address cannot be listened on.
        """
        await self._started.wait()  # SIGHUP can arrive while the first addresses are being opened
        await self._reconfigure(settings, credentials)

    async def _reconfigure(
        self, settings: ApiSettings, credentials: CredentialSource | None
    ) -> None:
        path, listen = settings.socket, settings.listen
        credentials_path = "" if credentials is None else credentials.socket
        access = (settings.socket_mode, settings.socket_group)
        make_credentials = partial(
            make_unix, credentials_path, _CREDENTIALS_MODE, None, "credentials.socket"
        )
        try:
            api = await self._api.open(path, partial(make_unix, path, *access))
            await self._probes.open(listen, partial(make_tcp, listen))
            await self._credentials.open(credentials_path, make_credentials)
            if api is not None and api.file is not None and access != self._access:
                await anyio.to_thread.run_sync(api.file.set_access, *access)
        except BaseException:
            with anyio.CancelScope(shield=True):
                for endpoint in (self._api, self._probes, self._credentials):
                    await endpoint.abandon()
            raise
        self._access = access
        serve_api = partial(self._serve_api, settings)
        await self._api.switch((access, settings.subscribers), serve_api)
        serve_probes = partial(self._serve_probes, settings)
        await self._probes.switch(settings.allowed_hosts, serve_probes)
        # grants change while units are being answered: no answer is cut off for that
        self._credential_server.source = credentials
        await self._credentials.switch(None, self._serve_credentials)

    async def _serve_api(self, settings: ApiSettings, listener: Listener) -> Stop:
        import_http_server()
        from syncd.api.app import Api  # noqa: PLC0415 - see the module's docstring
        from syncd.api.server import Server  # noqa: PLC0415

        granted = {item.uid: (item.name, grant(item.scope)) for item in settings.subscribers}
        ledger = await anyio.to_thread.run_sync(self._ledger.reader)
        broadcast = Broadcast(
            ledger,
            self._stamp,
            self._metrics,
            lambda: self._status().inventory,
            self._last,
            limited=await self._number([item for _, item in granted.values()], ledger),
        )
        unmapped = await anyio.to_thread.run_sync(unmapped_uid)
        callers, most = Subscribers(granted, unmapped), _room_for(MOST_CALLERS)
        api = Api(callers, broadcast, ledger, self._status, self._settled)
        floods = Floods(lambda uids: None if listener.file is None else listener.file.deny(uids))
        server = Server(api.app(), Shares(most, callers.share, floods.add))
        await server.start(listener.socket)
        scope = await self._tasks.start(_run_in_scope, broadcast.run)
        self._broadcast = broadcast
        log.info("api.listening", socket=listener.address, subscribers=len(granted))

        async def stop() -> None:
            self._broadcast = None
            broadcast.close()
            floods.close()
            await server.stop(GRACE)
            scope.cancel()
            await anyio.to_thread.run_sync(ledger.close)

        return stop

    async def _number(self, grants: list[Grant], ledger: Reads) -> dict[str, GrantPositions]:
        """The positions of limited grants, by `grant_key`."""
        limited = {grant_key(item): item for item in grants if item.scopes is not None}
        try:
            bases = await anyio.to_thread.run_sync(self._ledger.number, limited.values())
        except StateError as error:
            hint = "subscribers with a scope get a reset after the next restart"
            log.warning("api.positions_not_stored", problem=str(error), hint=hint)
            pruned, _ = await anyio.to_thread.run_sync(ledger.span)
            bases = {key: Base.new(pruned) for key in limited}
        return {
            key: GrantPositions(bases[key], item, self._stamp.source, ledger)
            for key, item in limited.items()
        }

    async def _serve_probes(self, settings: ApiSettings, listener: Listener) -> Stop:
        import_http_server()
        from syncd.api.app import probes_app  # noqa: PLC0415 - see the module's docstring
        from syncd.api.hosts import AllowedHosts  # noqa: PLC0415
        from syncd.api.server import Server  # noqa: PLC0415

        hosts = AllowedHosts(settings.listen, settings.allowed_hosts)
        server = Server(probes_app(self._status, self._metrics, hosts), Newest(MOST_PROBES))
        await server.start(listener.socket)
        log.info("probes.listening", address=listener.address)
        return partial(server.stop, GRACE)

    async def _serve_credentials(self, listener: Listener) -> Stop:
        source = self._credential_server.source
        run = partial(self._credential_server.run, listener.socket)
        scope = await self._tasks.start(_run_in_scope, run)
        granted = 0 if source is None else len(source.grants)
        log.info("credentials.listening", socket=listener.address, grants=granted)

        async def stop() -> None:
            scope.cancel()

        return stop


async def _run_in_scope(
    run: Callable[[], Awaitable[None]], *, task_status: TaskStatus[anyio.CancelScope]
) -> None:
    with anyio.CancelScope() as scope:
        task_status.started(scope)
        await run()


def _room_for(connections: int) -> int:
    """Raises the limit of open files if needed; returns how many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft - _RESERVED)
