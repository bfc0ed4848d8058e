"""`fingerprint_key_file`: versions that can be compared; a key that rotates without an event."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from support.receiver import Receiver
from support.subscriber import ask
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from pathlib import Path

    from support.world import DaemonProcess

ONE, TWO = secret("the first shared key"), secret("the second shared key")


def write(path: Path, key: bytes) -> None:
    """Replaces the key as a mount does, by rename."""
    new = path.with_name(".new")
    new.write_bytes(key)
    os.rename(new, path)


def versions(world: World) -> dict[str, Any]:
    """What the daemon reports, by secret."""
    _, answer = ask(f"{world.directory}/api.sock", "/v1/secrets")
    return {item["secret"]: item["version"] for item in answer["secrets"]}


def prepare(world: World, key: Path | None, receiver: Receiver, **values: bytes) -> None:
    world.publish(values)
    world.map(*values)
    world.configure(
        api={"socket": f"{world.directory}/api.sock"},
        consumers=[{"name": "hook", "kind": "webhook", "url": receiver.url}],
        **({} if key is None else {"fingerprint_key_file": str(key)}),
    )


def changed_key(daemon: DaemonProcess, count: int = 1) -> None:
    daemon.wait_for("fingerprint_key.changed", count)


def wait_for_other_versions(world: World, before: dict[str, Any]) -> None:
    wait_until(lambda: not set(versions(world).values()) & set(before.values()))


def test_installations_with_one_key_have_one_version(tmp_path: Path) -> None:
    """Equal values have equal versions before and after the key is replaced, and no event tells."""
    key = tmp_path / "key"
    write(key, ONE)
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        worlds = [stack.enter_context(World()) for _ in range(2)]
        daemons = []
        for world in worlds:
            prepare(world, key, receiver, a=secret("1"), b=secret("2"))
            daemons.append(stack.enter_context(world.daemon()))
        before = versions(worlds[0])
        assert versions(worlds[1]) == before
        write(key, TWO)
        for daemon in daemons:
            changed_key(daemon, 2)
        for world in worlds:
            wait_for_other_versions(world, before)
        assert versions(worlds[0]) == versions(worlds[1])
        for number, world in enumerate(worlds, 1):
            world.publish(a=secret("3"))  # the only change there is
            (request,) = receiver.wait(number)[number - 1 :]
            (event,) = request.events
            assert event["data"]["change"] == "modified"
            assert event["data"]["version"] == versions(world)["a"]
        assert versions(worlds[0]) == versions(worlds[1])
        assert [len(world.events()) for world in worlds] == [1, 1]


def test_a_key_that_is_replaced_while_the_daemon_is_down(tmp_path: Path) -> None:
    """What changed meanwhile is a change, what did not is none; twice, and back to an own key."""
    key = tmp_path / "key"
    write(key, ONE)
    with Receiver() as receiver, World() as world:
        prepare(world, None, receiver, a=secret("1"), b=secret("2"))
        with world.daemon():
            own = versions(world)
        prepare(world, key, receiver, a=secret("1"), b=secret("2"))
        with world.daemon():
            first = versions(world)
        write(key, TWO)
        world.publish(b=secret("3"))
        with world.daemon():
            second = versions(world)
            (request,) = receiver.wait(1)
            assert request.subjects == ["b"]
            assert request.events[0]["data"]["previous_version"] == first["b"]
        prepare(world, None, receiver, a=secret("1"), b=secret("3"))
        with world.daemon():
            third = versions(world)
        assert len({own["a"], first["a"], second["a"], third["a"]}) == 4
        assert len(world.events()) == 1
        assert not os.path.exists(f"{world.state}/ledger.sqlite3.set-aside")


def test_a_secret_that_is_unreadable_meanwhile(tmp_path: Path) -> None:
    """It is compared under both keys when it can be read again, and is no change."""
    key = tmp_path / "key"
    write(key, ONE)
    with Receiver() as receiver, World() as world:
        prepare(world, key, receiver, a=secret("1"), b=secret("2"))
        with world.daemon() as daemon:
            before = versions(world)
            world.publish(a=b"x" * (2 << 20))  # above max_secret_size
            daemon.wait_for("secret.problem", secret="a")
            write(key, TWO)
            changed_key(daemon, 2)
            wait_until(lambda: versions(world)["b"] != before["b"])
            assert versions(world)["a"] == before["a"]
            world.publish(a=secret("1"))
            daemon.wait_for("secret.recovered", secret="a")
            wait_until(lambda: versions(world)["a"] != before["a"])
        assert world.events() == []


def test_a_key_that_cannot_be_used_yet(tmp_path: Path) -> None:
    """The daemon starts without it, and takes it over when it is there; no event tells."""
    key = tmp_path / "key"
    with Receiver() as receiver, World() as world:
        prepare(world, key, receiver, a=secret("1"))
        with world.daemon() as daemon:
            missing = daemon.wait_for("fingerprint_key.unusable")
            assert missing["problem"].startswith(f"cannot read fingerprint_key_file {key}: ")
            write(key, b"short\n")
            short = daemon.wait_for("fingerprint_key.unusable", 2)
            assert "it has fewer than 16 bytes; write a random key" in short["problem"]
            write(key, ONE + b"\n")
            daemon.wait_for("fingerprint_key.recovered")
            changed_key(daemon)
        assert world.events() == []
