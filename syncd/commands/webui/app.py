"""The application behind the page: it passes five requests on to the daemon's socket.

They are sent by this process, so the daemon sees the user who runs the command: it shows what that
user may see, and does what that user may do. Two of them do something: to retry a consumer, and to
test the way to one; they change no state of the daemon's.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import anyio
import h11
import msgspec
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from syncd.commands.client import SILENCE, unreachable
from syncd.commands.webui import page
from syncd.commands.webui.guard import from_page, names_loopback
from syncd.core.errors import SyncdError
from syncd.net.http1 import Request as Question
from syncd.net.pool import ConnectTimeoutError, Pool, Response as Answer
from syncd.net.url import Url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from syncd.commands.webui.guard import Guard

    Handler = Callable[[Request], Coroutine[None, None, Response]]

_CONNECT: Final = 5.0
_ANSWER: Final = 30.0
_ACTIONS: Final = {"retry": _ANSWER, "test": 3600.0}
"""What can be asked of a consumer, and seconds until the answer, at most: a test of a command takes
as long as the command."""

_LONGEST_TOKEN: Final = 256
_KEPT: Final = 4
_OK: Final = 200
_BROKEN: Final = (
    OSError,
    anyio.BrokenResourceError,
    anyio.EndOfStream,
    h11.ProtocolError,
    ConnectTimeoutError,
)


class Ui:
    """The requests of the page.

    Args:
        socket: Path of the daemon's socket.
        guard: Who may send them.
        may_act: Whether the daemon lets this user retry and test consumers.
    """

    def __init__(self, socket: str, guard: Guard, *, may_act: bool) -> None:
        self._socket = socket
        self._guard = guard
        self._page = page.load()
        self._policy = {"content-security-policy": page.policy(self._page)}
        self._may_act = may_act
        self._daemon = Pool(None, socket=socket, keep=_KEPT, connect_timeout=_CONNECT)

    async def aclose(self) -> None:
        """Closes the connections to the daemon."""
        await self._daemon.aclose()

    def app(self) -> ASGIApp:
        """The application."""
        at = self._guard.path
        routes = [
            Route(at, self._show, methods=["GET"]),
            Route(f"{at}session", self._open, methods=["POST"]),
            Route(f"{at}v1/status", self._protected(self._status), methods=["GET"]),
            Route(f"{at}v1/secrets", self._protected(self._secrets), methods=["GET"]),
            Route(f"{at}v1/events", self._protected(self._events), methods=["GET"]),
        ]
        if self._may_act:
            for name, limit in _ACTIONS.items():
                act = self._protected(partial(self._act, name, limit), certainly=True)
                path = f"{at}v1/consumers/{{name}}/{name}"
                routes.append(Route(path, act, methods=["POST"]))
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

    def _protected(self, handle: Handler, *, certainly: bool = False) -> Handler:
        async def protected(request: Request) -> Response:
            if not from_page(request.headers, certainly=certainly):
                return _refusal(403, "only the page itself may do this")
            if not self._guard.knows(request.headers):
                return _refusal(401, "this browser has no session; run syncd ui again")
            try:
                return await handle(request)
            except SyncdError as error:
                return _refusal(502, str(error))

        return protected

    async def _status(self, _request: Request) -> Response:
        answer = await self._ask("GET", "/v1/status")
        answer.headers["syncd-may-act"] = "yes" if self._may_act else "no"
        return answer

    async def _secrets(self, _request: Request) -> Response:
        return await self._ask("GET", "/v1/secrets")

    async def _act(self, action: str, limit: float, request: Request) -> Response:
        name = quote(request.path_params["name"], safe="")
        return await self._ask("POST", f"/v1/consumers/{name}/{action}", limit)

    async def _ask(self, method: str, target: str, limit: float = _ANSWER) -> Response:
        with self._reaching(), anyio.fail_after(limit):
            answer = await self._daemon.request(_question(method, target, {}))
            return await _whole(answer)

    async def _events(self, request: Request) -> Response:
        headers = {"accept": "text/event-stream"}
        last = request.headers.get("last-event-id")
        if last:
            headers["last-event-id"] = last
        after = request.query_params.get("after")
        target = "/v1/events" + (f"?{urlencode({'after': after})}" if after else "")
        with self._reaching(), anyio.fail_after(_ANSWER):
            answer = await self._daemon.request(_question("GET", target, headers))
            if answer.status != _OK:
                return await _whole(answer)
        return StreamingResponse(_stream(answer), media_type="text/event-stream")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Converts what goes wrong to an error that says why.

        Raises:
            UnreachableError: Nothing listens.
            SyncdError: The daemon does not answer.
        """
        try:
            yield
        except (*_BROKEN, TimeoutError) as error:
            if isinstance(error, OSError) and error.errno:
                raise unreachable(self._socket, error) from None
            problem = f"cannot reach the daemon at {self._socket}: it did not answer"
            raise SyncdError(problem, "see its log") from None


def _question(method: str, target: str, headers: dict[str, str]) -> Question:
    content = None if method == "GET" else b""
    return Question(method, Url("http", "syncd", 80, target), headers, content)


async def _whole(answer: Answer) -> Response:
    try:
        content = b"".join([chunk async for chunk in answer.body()])
    finally:
        await answer.aclose()
    # the type is ours: what comes from the daemon is never shown as a document
    return Response(content, answer.status, media_type="application/json")


async def _stream(answer: Answer) -> AsyncIterator[bytes]:
    """The stream until either side ends it, or it is silent; the page then connects again."""
    body = answer.body()
    try:
        while True:
            with anyio.fail_after(SILENCE):
                chunk = await anext(body)
            yield chunk
    except (*_BROKEN, TimeoutError, StopAsyncIteration):
        return
    finally:
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
