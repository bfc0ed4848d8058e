"""The application behind the page: it passes three requests on to the daemon's socket.

They are sent by this process, so the daemon sees the user who runs the command, and shows what that
user may see. Nothing that changes something is passed on.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
import httpx2
import msgspec
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from syncd.commands.client import SILENCE, unreachable
from syncd.commands.webui import page
from syncd.commands.webui.guard import from_page, names_loopback
from syncd.core.errors import SyncdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from syncd.commands.webui.guard import Guard

_CONNECT: Final = 5.0
_ANSWER: Final = 30.0
_LONGEST_TOKEN: Final = 256


class Ui:
    """The requests of the page.

    Args:
        socket: Path of the daemon's socket.
        guard: Who may send them.
    """

    def __init__(self, socket: str, guard: Guard) -> None:
        self._socket = socket
        self._guard = guard
        self._page = page.load()
        self._policy = {"content-security-policy": page.policy(self._page)}
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=socket),
            base_url="http://syncd",
            timeout=httpx2.Timeout(_ANSWER, connect=_CONNECT),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Closes the connections to the daemon."""
        await self._http.aclose()

    def app(self) -> ASGIApp:
        """The application."""
        at = self._guard.path
        routes = [
            Route(at, self._show, methods=["GET"]),
            Route(f"{at}session", self._open, methods=["POST"]),
            Route(f"{at}v1/status", self._protected(self._pass_on("/v1/status")), methods=["GET"]),
            Route(
                f"{at}v1/secrets", self._protected(self._pass_on("/v1/secrets")), methods=["GET"]
            ),
            Route(f"{at}v1/events", self._protected(self._events), methods=["GET"]),
        ]
        inner = Starlette(routes=routes, max_body_size=_LONGEST_TOKEN)
        inner.router.redirect_slashes = False

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
            allowed = names_loopback({"host": host})
            answer = inner if allowed else _refusal(421, "this host is not served; use 127.0.0.1")
            await answer(scope, receive, _with_headers(send))

        return guarded

    async def _show(self, _request: Request) -> Response:
        # nothing of the daemon is in it, so a link to it may come from anywhere
        return Response(self._page, headers=self._policy, media_type="text/html")

    async def _open(self, request: Request) -> Response:
        if not from_page(request.headers, certainly=True):
            return _refusal(403, "only the page itself may do this")
        token = (await request.body()).decode("ascii", "replace")
        cookie = self._guard.exchange(token)
        if cookie is None:
            return _refusal(403, "this address was used already; run syncd ui again for a new one")
        return Response(status_code=204, headers={"set-cookie": cookie})

    def _protected(
        self, handle: Callable[[Request], Coroutine[None, None, Response]]
    ) -> Callable[[Request], Coroutine[None, None, Response]]:
        async def protected(request: Request) -> Response:
            if not from_page(request.headers):
                return _refusal(403, "only the page itself may do this")
            if not self._guard.knows(request.headers):
                return _refusal(401, "this browser has no session; run syncd ui again")
            try:
                return await handle(request)
            except SyncdError as error:
                return _refusal(502, str(error))

        return protected

    def _pass_on(self, path: str) -> Callable[[Request], Coroutine[None, None, Response]]:
        async def pass_on(_request: Request) -> Response:
            async with self._reaching():
                answer = await self._http.get(path)
            # the type is ours: what comes from the daemon is never shown as a document
            return Response(answer.content, answer.status_code, media_type="application/json")

        return pass_on

    async def _events(self, request: Request) -> Response:
        headers = {"accept": "text/event-stream"}
        last = request.headers.get("last-event-id")
        if last:
            headers["last-event-id"] = last
        after = request.query_params.get("after", "")
        timeout = httpx2.Timeout(SILENCE, connect=_CONNECT)
        asked = self._http.build_request(
            "GET",
            "/v1/events",
            params={"after": after} if after else {},
            headers=headers,
            timeout=timeout,
        )
        async with self._reaching():
            answer = await self._http.send(asked, stream=True)
        if answer.status_code != httpx2.codes.OK:
            async with self._reaching():
                content = await answer.aread()
            return Response(content, answer.status_code, media_type="application/json")
        return StreamingResponse(_chunks(answer), media_type="text/event-stream")

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        """Converts what goes wrong to an error that says why.

        Raises:
            UnreachableError: The daemon cannot be reached.
        """
        try:
            # tried first, since httpx2's own error has no reason and leaves its socket open
            await (await anyio.connect_unix(self._socket)).aclose()
        except OSError as error:
            raise unreachable(self._socket, error) from None
        try:
            yield
        except httpx2.HTTPError:
            problem = f"cannot reach the daemon at {self._socket}: it did not answer"
            raise SyncdError(problem, "see its log") from None


async def _chunks(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """The stream until either side ends it; the page then connects again."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx2.HTTPError:
        return
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()


def _with_headers(send: Send) -> Send:
    extra = [(name.encode(), value.encode()) for name, value in page.COMMON.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
        await send(message)

    return sending


def _refusal(status: int, error: str) -> Response:
    body = msgspec.json.encode({"error": error})
    return Response(body, status, media_type="application/json")
