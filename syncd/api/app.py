"""The routes of the API, and who may use them.

Handlers take the daemon's state in the event loop, where all of it is of one moment, and build the
answer in a worker thread of the API (`syncd.api.answers`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from syncd.api.actions import ResendReport, RetryReport
from syncd.api.answers import Answer, Answers, BusyError
from syncd.api.attention import readiness
from syncd.api.positions import START
from syncd.api.report import RefreshReport, Refusal, secrets_report, status_report, visible
from syncd.api.rotations import DEFAULT, MOST, history_report
from syncd.api.streams import Stream
from syncd.api.subscribers import MOST_FILTERS, Caller, View, peer_of, resource
from syncd.core.errors import RefusedError, StateError
from syncd.core.model import Grant
from syncd.core.text import escape_json

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import anyio
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope as AsgiScope, Send

    from syncd.api.actions import Actions
    from syncd.api.answers import Slot
    from syncd.api.hosts import AllowedHosts
    from syncd.api.positions import Place, Positions
    from syncd.api.server import Connection
    from syncd.api.status import DaemonStatus
    from syncd.api.streams import Broadcast
    from syncd.api.subscribers import Subscribers
    from syncd.core.model import Scope
    from syncd.ledger.reads import Reads
    from syncd.telemetry.metrics import Metrics

    _Make = Callable[[Caller, View], Callable[[], bytes]]

LARGEST_BODY: Final = 1024
"""Bytes of a request's body, at most: no request needs one."""

_JSON: Final = "application/json"
_TRUTH: Final = {None: True, "true": True, "false": False}
_encoder: Final = msgspec.json.Encoder()


class Api:
    """The application on the Unix socket.

    Args:
        subscribers: The users who may use it.
        broadcast: The event streams, and the threads and slots that all answers share.
        ledger: Holds the mailboxes.
        status: Returns the state of the daemon now.
        settled: Set when the first scan is done.
    """

    def __init__(
        self,
        subscribers: Subscribers,
        broadcast: Broadcast,
        ledger: Reads,
        status: Callable[[], DaemonStatus],
        settled: anyio.Event,
    ) -> None:
        self._subscribers = subscribers
        self._broadcast = broadcast
        self._ledger = ledger
        self._current = status
        self._settled = settled
        self._answers = broadcast.answers

    def app(self) -> ASGIApp:
        """The application."""
        routes = [
            Route("/v1/secrets", self._secrets, methods=["GET"]),
            Route("/v1/status", self._status, methods=["GET"]),
            Route("/v1/events", self._events, methods=["GET"]),
            Route("/v1/history", self._history, methods=["GET"]),
            Route("/v1/refresh", self._refresh, methods=["POST"]),
            Route("/v1/consumers/{name}/retry", self._retry, methods=["POST"]),
            Route("/v1/consumers/{name}/test", self._test, methods=["POST"]),
            Route("/v1/consumers/{name}/resend", self._resend, methods=["POST"]),
        ]
        return self._authorised(_starlette(routes))

    def _authorised(self, app: ASGIApp) -> ASGIApp:
        # before routing: a user without a grant must not learn which paths exist
        async def pass_on(scope: AsgiScope, receive: Receive, send: Send) -> None:
            connection: Connection = scope["state"]["connection"]
            peer = peer_of(connection.transport.get_extra_info("socket"))
            caller = self._subscribers.caller(peer)
            if caller is None:
                error = Refusal(self._subscribers.refusal(peer))
                await _json(error, 403)(scope, receive, send)
                return
            scope["state"]["caller"] = caller
            if caller.privileged:
                connection.trust()
            await app(scope, receive, send)

        return pass_on

    async def _secrets(self, request: Request) -> Answer:
        _parameters(request, ())
        await self._settled.wait()
        return self._answer(request, self._make_secrets)

    def _make_secrets(self, _caller: Caller, view: View) -> Callable[[], bytes]:
        status = self._current()
        return lambda: _encode(secrets_report(status, self._ledger.pending(), view))

    async def _status(self, request: Request) -> Answer:
        _parameters(request, ())
        return self._answer(request, self._make_status)

    def _make_status(self, caller: Caller, view: View) -> Callable[[], bytes]:
        status, count = self._current(), self._broadcast.count(caller)
        positions, last = self._broadcast.positions(caller.grant), self._broadcast.history.last

        def make() -> bytes:
            return _encode(
                status_report(
                    status,
                    self._ledger.pending(),
                    view,
                    position=(positions.stamp.epoch, positions.place(last).number),
                    subscribers=count,
                    now=datetime.now(UTC),
                )
            )

        return make

    async def _history(self, request: Request) -> Answer:
        parameters = _parameters(request, ("consumer", "limit", "resource", "secret"))
        consumer, most = _single(parameters, "consumer"), _limit(parameters)
        named, resources = _secrets(parameters), _resources(parameters)
        view = View(_caller(request).grant, named, resources)
        await self._settled.wait()

        def make(caller: Caller, view: View) -> Callable[[], bytes]:
            status, limited = self._current(), caller.grant.scopes is not None
            unwritten = {} if status.actions is None else status.actions.unwritten()
            stamp = self._broadcast.positions(Grant()).stamp

            def encode() -> bytes:
                names: Sequence[str] | None = None
                if named and not (limited or resources):
                    names = named  # also those that left the vault config
                elif not view.shows_all:
                    names = sorted({item.entry.name for item in visible(status.inventory, view)})
                return _encode(
                    history_report(
                        self._ledger,
                        view,
                        names,
                        unwritten,
                        stamp=stamp,
                        limited=limited,
                        consumer=consumer,
                        most=most,
                    )
                )

            return encode

        return self._answer(request, make, view, consumer, most)

    def _answer(
        self,
        request: Request,
        make: Callable[[Caller, View], Callable[[], bytes]],
        view: View | None = None,
        *more: Hashable,
    ) -> Answer:
        """An answer that all callers share who may see the same, and ask for the same."""
        caller = _caller(request)
        view = view or View(caller.grant)

        def prepare() -> Callable[[], tuple[bytes, str]]:
            encode = make(caller, view)
            return lambda: (encode(), _JSON)

        async def obtain(slot: Slot) -> tuple[bytes, str]:
            return await self._answers.shared((make.__name__, view.key, *more), prepare, slot)

        return Answer(self._answers, _connection(request), obtain, caller)

    async def _events(self, request: Request) -> Stream:
        parameters = _parameters(request, ("after", "follow", "resource", "secret"))
        caller = _caller(request)
        view = View(caller.grant, _secrets(parameters), _resources(parameters))
        follow = _follow(parameters)
        after = request.headers.get("last-event-id") or _single(parameters, "after")
        await self._settled.wait()
        positions, last = self._broadcast.positions(caller.grant), self._broadcast.history.last
        return Stream(
            self._broadcast,
            view,
            _connection(request),
            positions=positions,
            place=await self._place(positions, after, last, follow=follow),
            subscriber=caller,
            follow=follow,
            head=request.method == "HEAD",
        )

    async def _place(
        self, positions: Positions, after: str | None, last: int, *, follow: bool
    ) -> Place | None:
        """Where a stream begins; None for a position that the ledger does not hold."""
        if after or not follow:
            return await self._answers.run(partial(positions.find, after or START, last))
        if positions.limited:
            return await self._answers.run(partial(positions.place, last))
        return positions.place(last)

    async def _refresh(self, request: Request) -> Response:
        _parameters(request, ())
        if not _caller(request).privileged:
            raise HTTPException(403, "only root and the daemon's own user may request a refresh")
        status = self._current()
        if status.refresh is None:
            raise HTTPException(404, "there is nothing to refresh; configure provision")
        status.refresh()
        return _json(RefreshReport(tuple(sorted(status.providers))), 202)

    async def _retry(self, request: Request) -> Response:
        _parameters(request, ())
        actions, name = self._consumer(request)
        return _json(RetryReport(name, actions.retry(name)), 202)

    async def _test(self, request: Request) -> Response:
        _parameters(request, ())
        actions, name = self._consumer(request)
        try:
            return _json(await actions.test(name), 200)
        except RefusedError as error:
            raise HTTPException(409, str(error)) from None

    async def _resend(self, request: Request) -> Response:
        secret = _single(_parameters(request, ("secret",)), "secret")
        actions, name = self._consumer(request)
        try:
            names = await actions.resend(name, secret)
        except RefusedError as error:
            raise HTTPException(409, str(error)) from None
        return _json(ResendReport(name, names), 202)

    def _consumer(self, request: Request) -> tuple[Actions, str]:
        if not _caller(request).privileged:
            raise HTTPException(403, "only root and the daemon's own user may do this")
        actions, name = self._current().actions, request.path_params["name"]
        if actions is None or name not in actions.grants:
            raise HTTPException(404, "there is no consumer of this name")
        return actions, name


def probes_app(
    status: Callable[[], DaemonStatus], metrics: Metrics, hosts: AllowedHosts
) -> ASGIApp:
    """The application on `api.listen`: probes and metrics, for every client.

    Args:
        status: Returns the state of the daemon now.
        metrics: The metrics to serve.
        hosts: The hosts that requests may name.
    """
    answers = Answers()

    async def healthz(_request: Request) -> Response:
        return Response(b"ok\n", media_type="text/plain")

    async def readyz(_request: Request) -> Response:
        answer = readiness(status())
        return _json(answer, 200 if answer.ready else 503)

    async def exposition(request: Request) -> Answer:
        accept = request.headers.get("accept", "")

        async def obtain(_slot: Slot) -> tuple[bytes, str]:
            return await answers.recent(accept, partial(metrics.exposition, accept))

        return Answer(answers, _connection(request), obtain)

    refusal = Refusal("not the host of this server; use its address, or add to api.allowed_hosts")
    app = _starlette(
        [
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/metrics", exposition, methods=["GET"]),
        ]
    )
    return hosts.guard(app, _json(refusal, 421))


def _starlette(routes: Sequence[Route]) -> Starlette:
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _refuse,
            StateError: _unusable,
            BusyError: _unusable,
        },
        max_body_size=LARGEST_BODY,
    )
    # a redirect to a path without its slash would repeat the client's Host
    app.router.redirect_slashes = False
    return app


def _encode(answer: msgspec.Struct) -> bytes:
    """JSON that does nothing to a terminal, since people read it with curl."""
    return escape_json(_encoder.encode(answer))


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(Refusal(error.detail), error.status_code, error.headers)


async def _unusable(_request: Request, error: Exception) -> Response:
    return _json(Refusal(str(error)), 503)


def _json(
    answer: msgspec.Struct, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(_encode(answer), status, headers, media_type=_JSON)


def _connection(request: Request) -> Connection:
    connection: Connection = request.scope["state"]["connection"]
    return connection


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope["state"]["caller"]
    return caller


def _parameters(request: Request, allowed: Sequence[str]) -> dict[str, list[str]]:
    """The query's parameters; a misspelt one is refused, since it would not filter."""
    found: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            hint = f"use {', '.join(allowed)}" if allowed else "remove the query"
            raise HTTPException(400, f"unknown query parameter; {hint}")
        found.setdefault(name, []).append(value)
    for name, values in found.items():
        if len(values) > MOST_FILTERS:
            raise HTTPException(400, f"{name} is given more than {MOST_FILTERS} times")
    return found


def _single(parameters: Mapping[str, list[str]], name: str) -> str | None:
    values = parameters.get(name, [])
    if len(values) > 1:
        raise HTTPException(400, f"{name} is given twice; give it once")
    return values[0] if values else None


def _follow(parameters: Mapping[str, list[str]]) -> bool:
    found = _TRUTH.get(_single(parameters, "follow"))
    if found is None:
        raise HTTPException(400, "follow must be true or false")
    return found


def _limit(parameters: Mapping[str, list[str]]) -> int:
    text = _single(parameters, "limit") or str(DEFAULT)
    most = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) else 0
    if not 1 <= most <= MOST:
        raise HTTPException(400, f"limit must be a number from 1 to {MOST}")
    return most


def _secrets(parameters: Mapping[str, list[str]]) -> list[str]:
    names = parameters.get("secret", [])
    if "" in names:
        raise HTTPException(400, "secret is empty; write a name or remove the parameter")
    return names


def _resources(parameters: Mapping[str, list[str]]) -> list[Scope]:
    found = []
    for text in parameters.get("resource", ()):
        wanted = resource(text)
        if wanted is None:
            raise HTTPException(400, "resource is not Type or Type/id; write Client/my-client")
        found.append(wanted)
    return found
