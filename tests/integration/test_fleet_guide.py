"""The guide to fleets: its commands run as written, its tables are complete, its sums are right."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import yaml
from jsonschema import Draft202012Validator
from support.documents import blocks, document, follow, run
from support.nats import free_port

from syncd.commands.schema import schema_of
from syncd.config.settings import Nats, Provision, RelaySource
from syncd.core.event_data import FleetData
from syncd.core.nats_binding import _PLACES, escape
from syncd.daemon.fingerprint_key import read_key
from syncd.net.nats import PING_INTERVAL

if TYPE_CHECKING:
    from pathlib import Path

PAGE = document("docs/fleet.md")
TUTORIAL = PAGE[PAGE.index("## Try it") : PAGE.index("## Publish")]
PUBLISH = PAGE[PAGE.index("## Publish") : PAGE.index("## Relay")]
RELAY = PAGE[PAGE.index("## Relay") : PAGE.index("## One key")]
KEY = PAGE[PAGE.index("## One key") : PAGE.index("## Who has")]
ANNOUNCEMENTS = PAGE[PAGE.index("## Announcements") : PAGE.index("## Within one")]
SIZING = PAGE[PAGE.index("## Sizing") : PAGE.index("## What not to do")]


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """One shell runs all commands in order; what the page shows is in their output, in order."""
    follow(TUTORIAL, tmp_path, {"4222": str(free_port()), "9000": str(free_port())})


def test_the_relays_command_is_understood(tmp_path: Path) -> None:
    """As written, but for the server and the file, which are not there."""
    ((_, command),) = blocks(RELAY)
    done = run(command.replace("/etc/syncd/relay.yaml", "/nonexistent.yaml"), tmp_path)
    assert done.returncode == 2
    assert "/nonexistent.yaml" in done.stderr
    assert "No such option" not in done.stderr


def test_the_key_that_the_page_makes_can_be_used(tmp_path: Path) -> None:
    """Its command writes a file that syncd takes."""
    ((_, command),) = blocks(KEY)
    assert run(command, tmp_path).returncode == 0
    assert len(read_key(f"{tmp_path}/fingerprint.key")) == 64


def test_the_announcement_that_the_page_shows() -> None:
    """It fits the schema, and so does the consumer that records each rotation once."""
    event = json.loads(ANNOUNCEMENTS.split("```json\n")[1].split("```")[0])
    Draft202012Validator(schema_of("event")).validate(event)
    assert event["data"].keys() == set(FleetData.__struct_fields__)
    consumers = yaml.safe_load(ANNOUNCEMENTS.split("```yaml\n")[1].split("```")[0])
    relay = {"urls": ["nats://nats.example.org"], "subject": "syncd.>", "state_bucket": "b"}
    Draft202012Validator(schema_of("relay")).validate({"relay": relay, **consumers})


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
    fleet, document, cost = 1_000_000, 7.7e3, 0.36e-3
    assert f"0.36 ms = {10_000 * cost:.1f} s of processor" in text
    assert f"= {fleet / 60:,.0f} per second, of 7.7 KB each" in text
    assert f"each: {fleet / 60 * document / 1e6:.0f} MB/s" in text
    assert f"0.11 ms = {fleet / 10 / 300 * 0.11e-3 * 100:.0f} % of a core" in text
    rate = fleet / 900
    assert f"they are {rate:,.0f} per second and {rate * document / 1e6:.1f} MB/s" in text
    assert f"after {3 * 15} minutes" in text
    assert f"= {fleet * document / 1e9:.1f} GB for each replica" in text
    assert f"= {fleet * cost:.0f} s of processor" in text
    assert f"relay each: {fleet / 10 * cost:.0f} s, {40 + 1.4e-3 * fleet / 10:.0f} MB" in text
    assert f"{fleet / 50_000:.0f} leaf nodes" in text
    spread = 0.1 * interval
    assert f"over {spread:.0f} s: {nodes / spread:.0f} per second" in text
    deviation = spread / math.sqrt(12) * math.sqrt(9)
    peak = nodes / (deviation * math.sqrt(2 * math.pi))
    assert f"= {deviation:.0f} s: {peak:.0f} per second" in text
