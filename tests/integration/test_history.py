"""`syncd history` with the real daemon: what became of rotations, also after a restart."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.receiver import Receiver, reply
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"), b=secret("0"))
        world.map("a", "b")
        yield world


def test_a_rotation_with_attempts_that_failed(world: World) -> None:
    """When it was seen, each attempt with status and reason, and when it was delivered."""
    at = ("--socket", f"{world.directory}/s")
    with Receiver() as receiver:
        hook = {"name": "hook", "kind": "webhook", "url": receiver.url}
        away = {"name": "away", "kind": "webhook", "url": "http://127.0.0.1:1"}
        scoped = {**away, "scope": [{"resource_type": "Client", "id": "b"}]}
        world.configure(api={"socket": at[1]}, consumers=[hook, scoped])
        with world.daemon() as daemon:
            assert world.run("history", *at).stdout == "no rotations\n"
            receiver.script(reply(503), reply(400))
            world.publish(a=secret("1"))
            daemon.wait_for("delivery.rejected", consumer="hook")
            # not written yet, and known all the same
            assert "rejected  400" in world.run("history", *at).stdout
            world.run("retry", "hook", *at)
            daemon.wait_for("delivery.acknowledged", consumer="hook")
            world.publish(b=secret("1"))
            daemon.wait_for("delivery.acknowledged", 2, consumer="hook")
            daemon.wait_for("delivery.retry", consumer="away")
        world.configure(api={"socket": at[1]}, consumers=[hook])
        with world.daemon():
            first, second = world.run("history", *at).stdout.split("\n\n")
            lines = first.splitlines()
            assert re.fullmatch(r"a  modified  k1:\S+… -> k1:\S+…  \w+-1", lines[0])
            expected = (
                rf"  {TIME} +detected",
                rf"  {TIME}  \+\d+\.\d{{3}} s  hook  retried    503  cannot deliver to http://.*",
                rf"  {TIME}  \+\d+\.\d{{3}} s  hook  rejected   400  cannot deliver to http://.*",
                rf"  {TIME}  \+\d+\.\d{{3}} s  hook  delivered  204",
            )
            for line, pattern in zip(lines[1:], expected, strict=True):
                assert re.fullmatch(pattern, line), line
            assert "retried" in second  # of a consumer that is gone
            assert world.run("history", "--consumer", "away", *at).stdout.startswith("b  ")
            found = as_json(world, *at, "--secret", "a", "--limit", "1")
            assert [item["outcome"] for item in found[0]["entries"]] == [
                *("retried", "rejected", "delivered"),
            ]
            assert as_json(world, *at, "--secret", "none") == []
            world.map("b")
            wait_until(lambda: "a  " not in world.run("status", *at).stdout)
            assert as_json(world, *at, "--secret", "a")[0] == found[0]  # it is still in the log
            assert world.run("history", "--limit", "0", *at).returncode == 2
    done = world.run("history", *at)
    assert (done.returncode, "cannot reach the daemon" in done.stderr) == (2, True)


def as_json(world: World, *arguments: str) -> list[dict[str, Any]]:
    done = world.run("history", "--format", "json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["rotations"]
    return found
