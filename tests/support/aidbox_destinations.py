"""Destinations of the double of Aidbox, traffic through them, and what recreates them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

from support.aidbox import reference
from support.aidbox_clients import box, consumer
from support.waiting import DEADLINE, wait_until
from support.world import secret

if TYPE_CHECKING:
    from support.aidbox import Aidbox
    from support.aidbox_server import Resource
    from support.world import World

DESTINATIONS = 12
TYPE = "AidboxTopicDestination"
HOOK = "http://health-samurai.io/fhir/core/StructureDefinition/aidboxtopicdestination-webhook"


def topic(number: int) -> str:
    return f"http://example.org/topic-{number}"


def destination(number: int, *parameters: Resource, **more: Any) -> Resource:
    """A webhook whose header is the secret of the same name."""
    return {
        "resourceType": TYPE,
        "id": f"d{number}",
        "meta": {"profile": [HOOK]},
        "kind": "webhook-at-least-once",
        "topic": topic(number),
        "parameter": [
            {"name": "endpoint", "valueUrl": "https://example.org/hook"},
            {"name": "maxMessagesInBatch", "valueUnsignedInt": 20},
            {"name": "header", "valueString": "User-Agent: Aidbox"},
            {"name": "header", "_valueString": reference(f"d{number}")},
            *parameters,
        ],
        **more,
    }


def value(generation: int) -> bytes:
    return b"X-Key: " + secret(str(generation))


def prepare(world: World, *, own_scope: bool = False, count: int = DESTINATIONS) -> None:
    """A secret for each destination, for all destinations or for its own alone."""
    names = [f"d{number}" for number in range(count)]
    world.publish({"app": secret("app"), **dict.fromkeys(names, value(0))})
    scopes = {name: {"resource_type": TYPE} | ({"id": name} if own_scope else {}) for name in names}
    world.map("app", **scopes)


def serve(world: World, *destinations: Resource, **options: Any) -> Aidbox:
    """Three replicas with these destinations, which deliver what is in their queues."""
    return box(world, *destinations, **{"replicas": 3, "delivering": True, **options})


def recreating(world: World, aidbox: Aidbox, *actions: str, **recreate: Any) -> dict[str, Any]:
    """The consumer; without a delay, since the mount is one for all replicas."""
    options = {"delay": 0, **recreate}
    return consumer(world, aidbox, "recreate_destinations", *actions, recreate=options)


def stored(aidbox: Aidbox) -> dict[str, Resource]:
    """The destinations that there are, without what the server adds."""
    return {
        item["id"]: {**item, "meta": {k: v for k, v in item["meta"].items() if k == "profile"}}
        for item in aidbox.resources(TYPE)
    }


def wait_for_values(aidbox: Aidbox, ids: list[str], expected: bytes) -> None:
    """Waits until the sender of every destination has a value, at every replica."""

    def old() -> list[str]:
        return [id_ for id_ in ids if aidbox.used(id_) != [[expected]] * 3]

    wait_until(lambda: not old(), lambda: f"an old value: {old()}", within=2 * DEADLINE)


class Traffic:
    """A thread that publishes events to every topic, without a pause between them."""

    def __init__(self, aidbox: Aidbox, count: int = DESTINATIONS, pause: float = 0.002) -> None:
        self._aidbox = aidbox
        self._count = count
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._pause):
            self._aidbox.publish(topic(number % self._count))
            number += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
