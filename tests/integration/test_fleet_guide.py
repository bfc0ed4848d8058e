"""The guide to fleets: its commands run as written, its tables are complete, its sums are right."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from support.nats import free_port

from syncd.bus.connection import PING_INTERVAL
from syncd.core.nats_binding import _PLACES, escape
from syncd.settings import Nats, Provision, RelaySource

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
with open(f"{ROOT}/docs/fleet.md") as _file:
    PAGE = _file.read()
TUTORIAL = PAGE[PAGE.index("## Try it") : PAGE.index("## Publish")]
PUBLISH = PAGE[PAGE.index("## Publish") : PAGE.index("## Relay")]
RELAY = PAGE[PAGE.index("## Relay") : PAGE.index("## When something fails")]
SIZING = PAGE[PAGE.index("## Sizing") : PAGE.index("## What not to do")]


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks: language and content."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """One shell runs all commands in order; what the page shows is in their output, in order."""
    script, expected = "set -eu\n", []
    for language, content in blocks(TUTORIAL):
        if language == "sh":
            script += content
        else:
            expected += content.splitlines()
    script = script.replace("4222", str(free_port())).replace("9000", str(free_port()))
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "HOME": str(tmp_path), "SYNCD_LOG_FORMAT": "json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output + errors
    position = 0
    for line in expected:
        position = output.find(line, position)
        assert position >= 0, f"{line!r} is not in the output:\n{output}"
    assert not os.listdir(tmp_path)


def test_the_relays_command_is_understood() -> None:
    """As written, but for the server and the file, which are not there."""
    ((_, command),) = blocks(RELAY)
    done = subprocess.run(
        ["bash", "-c", command.replace("/etc/syncd/relay.yaml", "/nonexistent.yaml")],
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "/nonexistent.yaml" in done.stderr
    assert "No such option" not in done.stderr


def test_every_key_is_explained() -> None:
    """Of the consumer and of the section `relay`, and every placeholder."""
    own = {*Nats.__struct_fields__}
    assert [key for key in own if f"`{key}`" not in PUBLISH] == []
    assert [key for key in RelaySource.__struct_fields__ if f"`{key}`" not in PUBLISH + RELAY] == []
    assert [place for place in _PLACES if f"`<{place}>`" not in PUBLISH] == []
    assert f"`{escape('db.pass *')}`" in PUBLISH


def test_the_sums() -> None:
    """Each figure that the page derives is what its own arithmetic gives."""
    text = " ".join(SIZING.split())
    message, nodes, secrets, hour = 740, 10_000, 1_000_000, 3600
    interval = Provision(manifest="/m", target="/t").interval
    assert f"of {interval:.0f} s: {nodes / interval:.0f} per second" in text
    assert f"= {secrets / (30 * 24 * hour):.1f} on average" in text
    assert f"= {secrets / hour:.0f} per second" in text
    assert f"= {secrets * message / 1e6:.0f} MB" in text
    weekly = secrets * 7 / 30 * message
    assert f"= {weekly / 1e6:.0f} MB as a rule" in text
    assert f"{(weekly + secrets * message) / 1e6:.0f} MB with one breach" in text
    assert f"{secrets / hour * 600 / 1000:.0f},000 ids" in text
    assert f"{nodes / PING_INTERVAL:,.0f} pings per second" in text
    spread = 2 * 0.1 * interval
    assert f"over {spread:.0f} s: {nodes / spread:.0f} per second" in text
    deviation = spread / math.sqrt(12) * math.sqrt(9)
    peak = nodes / (deviation * math.sqrt(2 * math.pi))
    assert f"= {deviation:.0f} s: {peak:.0f} per second" in text
