"""What the demonstration does with a daemon that talks, or does not start."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import DEADLINE

from syncd.commands.demo import _Demo

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = "import sys; sys.stderr.write('daemon.ready\\n' + 'x' * (1 << 20))"
FAILING = "import sys; sys.exit('syncd: cannot start')"


@pytest.mark.parametrize(("script", "ready"), [(ENDLESS, True), (FAILING, False)])
async def test_all_that_the_daemon_says_is_read(
    script: str, ready: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than a pipe holds, on which a daemon would block; a failure is reported at once."""
    demo = _Demo(str(tmp_path))
    async with (
        await anyio.open_process([sys.executable, "-c", script], stdout=None) as process,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(demo._read_log, process)
        assert await demo._await_ready() is ready
        with anyio.fail_after(DEADLINE):
            await process.wait()
    said = capsys.readouterr().err
    assert ("syncd: cannot start" in said) is not ready
