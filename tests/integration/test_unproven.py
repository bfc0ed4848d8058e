"""A consumer that has never acknowledged is not called well, and what is wrong is seen at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.receiver import Receiver, reply
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.publish(a=secret("0"))
        world.map("a", "never")
        yield world


def status(world: World, *arguments: str) -> dict[str, Any]:
    done = world.run("status", *arguments, "--format", "json", SYNCD_SOCKET=f"{world.directory}/s")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(world: World) -> dict[str, str]:
    consumers = status(world)["status"]["consumers"]
    return {name: item["state"] for name, item in consumers.items()}


def configure(world: World, *consumers: dict[str, Any]) -> None:
    world.configure(api={"socket": f"{world.directory}/s"}, consumers=list(consumers))


def test_a_consumer_is_unproven_until_it_has_acknowledged(world: World) -> None:
    """That is remembered across restarts, and forgotten with another address or the consumer."""
    with Receiver() as receiver, Receiver() as other:
        hook = {"name": "hook", "kind": "webhook", "url": receiver.url}
        configure(world, hook)
        with world.daemon() as daemon:
            assert states(world) == {"hook": "unproven"}
            shown = world.run("status", SYNCD_SOCKET=f"{world.directory}/s").stdout
            assert "unproven" in shown
            row = next(line for line in shown.splitlines() if line.startswith("never"))
            assert "hook" not in row
            world.publish(a=secret("1"))
            daemon.wait_for("delivery.acknowledged")
            assert states(world) == {"hook": "ok"}
            shown = world.run("status", SYNCD_SOCKET=f"{world.directory}/s").stdout
            row = next(line for line in shown.splitlines() if line.startswith("never"))
            assert "hook" not in row  # it was never there, so it was never delivered
        with world.daemon():
            assert states(world) == {"hook": "ok"}
        configure(world, {**hook, "url": other.url})
        with world.daemon():
            assert states(world) == {"hook": "unproven"}


def test_consumers_that_can_never_work_are_found_at_the_start(world: World) -> None:
    """Credentials, hosts and scopes; each is named in status, and the exit code is 1."""
    url = "http://127.0.0.1:1"
    configure(
        world,
        {"name": "key", "kind": "webhook", "url": url, "signing_key_file": "/none/webhook.key"},
        {"name": "typo", "kind": "webhook", "url": url, "scope": [{"resource_type": "Clinet"}]},
        {"name": "host", "kind": "webhook", "url": "http://no-such-host.invalid/x"},
        {"name": "text", "kind": "webhook", "url": url, "headers": {"X-A": "${EHR_HOST}"}},
        {"name": "socket", "kind": "webhook", "url": "http://x", "socket": "/none/sock"},
        {"name": "fine", "kind": "webhook", "url": url},
    )
    with world.daemon() as daemon:
        for name in ("key", "typo", "host", "text", "socket"):
            daemon.wait_for("consumer.unusable", consumer=name)
        assert not daemon.logged("consumer.unusable", consumer="fine")
        wait_until(lambda: len(unusable(world)) == 5)
        found = unusable(world)
        for name, words in {
            "key": "signing_key_file",
            "typo": "did you mean Client?",
            "host": "no-such-host.invalid",
            "text": "${EHR_HOST}",
            "socket": "there is no socket /none/sock",
        }.items():
            assert any(line.startswith(f"consumer {name} ") and words in line for line in found)
        assert set(states(world).values()) == {"unproven"}
        (line,) = status(world, "socket")["status"]["attention"]
        assert line.startswith("consumer socket is unproven: ")
        assert status(world, "fine")["status"]["attention"] == []
        assert world.run("status", SYNCD_SOCKET=f"{world.directory}/s").returncode == 1


def unusable(world: World) -> list[str]:
    return [line for line in status(world)["status"]["attention"] if "is not usable" in line]


def test_a_refusal_is_not_called_a_failure(world: World) -> None:
    """`rejecting` needs a person, `failing` may pass by itself."""
    with Receiver() as receiver:
        configure(world, {"name": "hook", "kind": "webhook", "url": receiver.url})
        receiver.script(reply(400), reply(503))
        with world.daemon() as daemon:
            world.publish(a=secret("1"))
            daemon.wait_for("delivery.rejected")
            assert states(world) == {"hook": "rejecting"}
