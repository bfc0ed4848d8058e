"""A subscriber with a limited scope observes the same, whatever happens outside of that scope.

Two daemons run over equal worlds with one fingerprint key, and the same happens to the secrets of
the scope. In one of them other secrets change, appear, vanish and move, too. All that the
subscriber can see of the two is compared, but for what differs between any two installations.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.accounts import as_user, needs_root
from support.receiver import Receiver, reply
from support.waiting import wait_until
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.world import DaemonProcess

SCOPED = 4242
MINE = {"resource_type": "Client"}
OTHER = {"resource_type": "IdentityProvider", "id": "x"}
REQUESTS = (
    "/v1/status",
    "/v1/secrets",
    "/v1/events?follow=false&after=start",
    "/v1/events?follow=false&after=start&secret=mine",
    "/v1/events?follow=false&after=start&secret=other",
    "/v1/events?follow=false&after=start&resource=IdentityProvider",
    "/v1/events?follow=false&after=gone-1",
    "/v1/history",
    "/v1/history?secret=other&secret=mine&consumer=hook",
    "/v1/refresh",
    "/v1/nothing",
)
CODE = """
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
for target in sys.argv[2:]:
    connection = Connection("syncd")
    connection.request("GET", target)
    answer = connection.getresponse()
    print(target, answer.status, sorted(answer.headers.items()), answer.read().decode())
"""


class Side:
    """One of the two worlds."""

    def __init__(self, world: World, receiver: Receiver) -> None:
        self.world, self.receiver = world, receiver
        self.path = f"{world.directory}/syncd.sock"
        self.daemon: DaemonProcess
        os.chmod(world.directory, 0o755)
        world.publish(mine=secret("0"), other=secret("0"), third=secret("0"))
        self.map(OTHER)

    def map(self, third: dict[str, str], **more: dict[str, str]) -> None:
        self.world.map(mine=MINE, other=OTHER, third=third, **more)

    def configure(self, **more: Any) -> None:
        self.world.configure(
            instance="one",
            consumers=[{"name": "hook", "kind": "webhook", "url": self.receiver.url}],
            api={
                "socket": self.path,
                "socket_mode": "0666",
                "subscribers": [{"name": "mine", "uid": SCOPED, "scope": [MINE]}],
            },
            **more,
        )

    def view(self) -> str:
        """Everything that the subscriber can ask for."""
        done = as_user(SCOPED, CODE, self.path, *REQUESTS)
        assert done.returncode == 0, done.stderr
        text = done.stdout.replace(self.world.directory, "DIRECTORY")
        text = re.sub(r"[0-9a-f]{8}(?=-\d|\"?,\"sequence)", "EPOCH", text)
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
        return re.sub(r"'date', '[^']+'", "'date', 'DATE'", text)

    def rotated(self, name: str, mark: str) -> None:
        """Rotates a secret and waits until every consumer has it."""
        before = len(self.receiver.requests)
        self.world.publish({name: secret(mark)})
        wait_until(lambda: len(self.receiver.requests) > before)
        wait_until(lambda: not self.pending())

    def pending(self) -> int:
        done = self.daemon.logged("delivery.acknowledged")
        return len(self.receiver.requests) - len(done)


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        made = [
            Side(stack.enter_context(World()), stack.enter_context(Receiver())) for _ in range(2)
        ]
        yield made[0], made[1]


def begin(quiet: Side, busy: Side, stack: ExitStack, **more: Any) -> None:
    for side in (quiet, busy):
        side.configure(**more)
    quiet.daemon = stack.enter_context(quiet.world.daemon())
    os.makedirs(busy.world.state, mode=0o700, exist_ok=True)
    shutil.copy(f"{quiet.world.state}/fingerprint.key", busy.world.state)
    busy.daemon = stack.enter_context(busy.world.daemon())


@needs_root
def test_a_scoped_subscriber_does_not_observe_the_rest(sides: tuple[Side, Side]) -> None:
    """Neither times, numbers and gaps, nor the health of others show changes of other secrets."""
    quiet, busy = sides
    with ExitStack() as stack:
        begin(quiet, busy, stack)
        assert quiet.view() == busy.view()
        for number in range(1, 4):
            for turn in range(number):
                busy.rotated("other", f"{number}-{turn}")
            for side in sides:
                side.rotated("mine", str(number))
        busy.map({"resource_type": "TokenIntrospector"}, fourth=OTHER)
        busy.daemon.wait_for("vault_config.loaded")
        busy.rotated("fourth", "1")
        busy.world.withdraw("fourth", "other")
        busy.daemon.wait_for("secret.changed", secret="other", change="removed")
        view = quiet.view()
        assert view == busy.view()
        assert view.count("io.syncd.secret.changed") > 6
        assert "IdentityProvider" not in re.sub("(?m)^/v1.*", "", view)


@needs_root
def test_a_failing_consumer_is_not_observed(sides: tuple[Side, Side]) -> None:
    """What waits for a consumer that fails is not shown to who may not see it."""
    quiet, busy = sides
    with ExitStack() as stack:
        begin(quiet, busy, stack)
        for side in sides:
            side.rotated("mine", "1")
        busy.receiver.default = reply(503)
        busy.world.publish(other=secret("1"))
        busy.daemon.wait_for("delivery.retry", 1)
        assert quiet.view() == busy.view()


@needs_root
def test_pruning_is_not_observed(sides: tuple[Side, Side]) -> None:
    """A subscriber resumes where it was although events after that were pruned, and a restart."""
    quiet, busy = sides
    log = {"max_events": 3, "prune_interval": "50ms"}
    with ExitStack() as stack:
        begin(quiet, busy, stack, event_log=log)
        for side in sides:
            side.rotated("mine", "1")
        for number in range(8):
            busy.rotated("other", str(number + 1))
        busy.daemon.wait_for("event_log.pruned")
        start = "/v1/events?follow=false&after=start"
        wait_until(lambda: "subject" not in as_user(SCOPED, CODE, busy.path, start).stdout)
        for side in sides:
            side.daemon.stop()
            side.daemon.killed = True
        again = ExitStack()
        with again:
            for side in sides:
                side.daemon = again.enter_context(side.world.daemon())
            resumed = []
            for side in sides:
                raw = as_user(SCOPED, CODE, side.path, "/v1/status").stdout
                epoch = re.findall(r'"epoch":"(\w+)"', raw)[0]
                assert '"sequence":1' in raw
                target = f"/v1/events?follow=false&after={epoch}-1"
                resumed.append(as_user(SCOPED, CODE, side.path, target).stdout)
            assert all(": syncd" in text and "event:" not in text for text in resumed), resumed
