"""Reloads; tests/integration has the whole daemon."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from syncd.config.settings import Settings
from syncd.core.errors import RefusedError
from syncd.daemon import daemon as daemons
from syncd.daemon.daemon import Daemon

if TYPE_CHECKING:
    from syncd.api.service import Service
    from syncd.daemon.resources import Resources


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (RefusedError("cannot read x: missing", "create it"), "cannot read x: missing; create it"),
        (OSError(errno.EMFILE, "canary"), "Too many open files; raise syncd's limit of open files"),
        (ModuleNotFoundError("canary"), "internal error: ModuleNotFoundError at "),
    ],
)
async def test_a_reload_that_fails_keeps_the_previous_configuration(
    error: Exception, problem: str
) -> None:
    """Whatever is raised: a provider that was just configured is imported then."""
    settings, counted = Settings(vault_config="/v"), []

    async def open_engine(*_arguments: object) -> Any:
        raise error

    metrics = SimpleNamespace(set_reload_ok=lambda *, ok: counted.append(ok))
    resources = cast("Resources", SimpleNamespace(metrics=metrics))
    daemon = Daemon(settings, reload=lambda: settings, open_engine=open_engine)
    await daemon._reload(resources, cast("Service", None))
    assert counted == [False]
    (line,) = daemon._reload_problems
    assert line.startswith(problem)
    assert "canary" not in line


async def test_a_reload_is_reported_when_nothing_more_goes_to_the_former_consumers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads post without the event loop: a swap after the report is the new configuration's."""
    settings = Settings(vault_config="/v")
    said: list[str] = []

    async def open_engine(*_arguments: object) -> Any:
        return SimpleNamespace(credentials=None)

    async def reconfigure(*_arguments: object) -> None:
        pass

    resources = SimpleNamespace(metrics=SimpleNamespace(set_reload_ok=lambda *, ok: ok))
    monkeypatch.setattr(daemons, "configure_log", lambda *_: None)
    monkeypatch.setattr(daemons, "log", SimpleNamespace(info=said.append))
    daemon = Daemon(settings, reload=lambda: settings, open_engine=open_engine)
    daemon._running = SimpleNamespace(pipeline=SimpleNamespace(end=lambda: said.append("end")))
    daemon._scope = anyio.CancelScope()
    service = cast("Service", SimpleNamespace(reconfigure=reconfigure))
    await daemon._reload(cast("Resources", resources), service)
    assert said == ["end", "daemon.reloaded"]
    assert daemon._scope.cancel_called
