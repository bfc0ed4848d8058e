"""`syncd wait --delivered`: a real daemon, a consumer that is away, and an Aidbox that adopts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.receiver import Receiver, reply
from support.world import World, secret

from syncd.api.report import AdoptionReport, ConsumerPosition, SecretReport
from syncd.commands.delivered import Delivered
from syncd.core.adoption import AdoptionState
from syncd.core.model import Scope, State

if TYPE_CHECKING:
    import subprocess


def wait(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    return world.run("wait", "--delivered", "--socket", f"{world.directory}/s", *options)


def prepare(world: World, *receivers: Receiver) -> None:
    world.publish(a=secret("1"), b=secret("1"))
    world.map("a", "b")
    world.configure(
        api={"socket": f"{world.directory}/s"},
        consumers=[
            {"name": f"hook{number}", "kind": "webhook", "url": receiver.url}
            for number, receiver in enumerate(receivers)
        ],
    )


def test_it_waits_for_every_consumer() -> None:
    """Or for the one, or the secret, that is named; what is missing is named, too."""
    with Receiver() as well, Receiver() as away, World() as world:
        prepare(world, well, away)
        away.default = reply(503, retry_after="1")
        with world.daemon() as daemon:
            assert wait(world).returncode == 0
            world.publish(a=secret("2"))
            daemon.wait_for("delivery.retry", consumer="hook1")
            well.wait(1)
            assert wait(world, "--consumer", "hook0", "--timeout", "20s").returncode == 0
            assert wait(world, "--secret", "b", "--timeout", "0s").returncode == 0
            done = wait(world, "--timeout", "0s")
            assert done.returncode == 1
            line = "secret a: consumer hook1 has not acknowledged the newest version"
            assert done.stderr.splitlines() == [f"syncd: waiting: {line}", f"syncd: {line}"]
            away.default = reply()
            assert wait(world, "--secret", "a", "--timeout", "50s").returncode == 0


def test_what_cannot_be() -> None:
    """An unknown secret or consumer, no daemon, options that need another."""
    with Receiver() as receiver, World() as world:
        prepare(world, receiver)
        with world.daemon():
            for option, problem in {
                "--secret": "secret x: the daemon does not know it",
                "--consumer": "there is no consumer x that may see it",
            }.items():
                done = wait(world, option, "x", "--timeout", "0s")
                assert done.returncode == 1
                assert problem in done.stderr
        done = wait(world, "--timeout", "0s")
        assert done.returncode == 2
        assert "cannot reach the daemon" in done.stderr
        done = world.run("wait", "--adopted")
        assert done.returncode == 2
        assert "need --delivered" in done.stderr


def report(**consumers: AdoptionReport | None) -> SecretReport:
    positions = {
        name: ConsumerPosition("k1:1", pending=False, adoption=adoption)
        for name, adoption in consumers.items()
    }
    scope = Scope("Client", "a")
    return SecretReport("a", "/s/a", scope, State.PRESENT, "k1:1", None, None, consumers=positions)


ADOPTED = AdoptionReport(AdoptionState.ADOPTED, 0.1, None)


@pytest.mark.parametrize(
    ("consumers", "missing"),
    [
        ({"aidbox": ADOPTED, "hook": None}, []),
        ({"hook": None}, ["no consumer has verified the adoption of this version"]),
        (
            {"aidbox": AdoptionReport(AdoptionState.PENDING, None, None)},
            ["adoption by consumer aidbox is pending"],
        ),
        (
            {
                "one": ADOPTED,
                "two": AdoptionReport(AdoptionState.REJECTED, 9.0, "r: it answers 401"),
            },
            ["adoption by consumer two is rejected: r: it answers 401"],
        ),
        (
            {"one": ADOPTED, "two": AdoptionReport(AdoptionState.UNREACHABLE, None, "r: refused")},
            ["adoption by consumer two is unreachable: r: refused"],
        ),
        (
            {"aidbox": AdoptionReport(AdoptionState.NOT_VERIFIABLE, None, None)},
            ["its adoption cannot be verified: its scope is not one Client"],
        ),
    ],
)
def test_adoption(consumers: dict[str, Any], missing: list[str]) -> None:
    """Must be proven by one consumer, and open or refused at none."""
    goal = Delivered(("a",), adopted=True)
    assert goal.missing([report(**consumers)]) == [f"secret a: {line}" for line in missing]


def test_all_secrets_but_those_whose_adoption_cannot_be_verified() -> None:
    """They are waited for only where they are named."""
    cannot = AdoptionReport(AdoptionState.NOT_VERIFIABLE, None, None)
    assert Delivered(adopted=True).missing([report(aidbox=cannot)]) == []


def test_secrets_that_the_consumer_may_not_see() -> None:
    """They are not waited for, unless they are named, or the consumer sees none at all."""
    seen = report(hook=None)
    hidden = msgspec.structs.replace(report(), secret="b")
    assert Delivered(consumer="hook").missing([hidden, seen]) == []
    assert Delivered().missing([hidden, seen]) == []
    problem = ["secret b: there is no consumer hook that may see it"]
    assert Delivered(("b",), "hook").missing([hidden, seen]) == problem
    assert Delivered(consumer="hook").missing([hidden]) == problem
    for goal in (Delivered(("b",)), Delivered(("b",), adopted=True)):
        assert goal.missing([hidden]) == ["secret b: there is no consumer that may see it"]
