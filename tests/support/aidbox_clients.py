"""Clients of Aidbox that authenticate under load, and a world in which syncd is one of them."""

from __future__ import annotations

import base64
import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from support.aidbox import Aidbox, allow, bundle, client, reference
from support.waiting import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import World

OWN = b"own-secret"
CLIENTS = 20


def box(world: World, *more: Any, **options: Any) -> Aidbox:
    """A double that knows syncd, and the Client `app` with a secret of this mount."""
    with open(f"{world.directory}/own", "wb") as file:
        file.write(OWN)
    known = bundle(
        client("syncd", OWN.decode()),
        allow("syncd"),
        client("app", reference("app")),
        allow("app", uri="/fhir/Patient", request_method="get"),
        *more,
    )
    return Aidbox(world.vault_config, known, **options)


def consumer(world: World, aidbox: Aidbox, *actions: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "aidbox",
        "kind": "aidbox",
        "urls": aidbox.urls,
        "client_id": "syncd",
        "client_secret_file": f"{world.directory}/own",
        "actions": list(actions),
        **more,
    }


def status(url: str, id_: str, value: bytes) -> int:
    """What a Client that authenticates with a value is answered."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    try:
        pair = base64.b64encode(id_.encode() + b":" + value).decode()
        headers = {"authorization": f"Basic {pair}"}
        connection.request("GET", "/fhir/Patient?_count=0", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@dataclass
class Load:
    """Clients that authenticate in a loop with the old and the new value.

    Attributes:
        refused: When a replica first refused the old value.
        accepted: When it first accepted the new one.
        answers: How many there were, by status.
    """

    urls: list[str]
    old: bytes
    new: bytes
    refused: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _run(self, number: int) -> None:
        while not self._over.wait(0.02):
            for url in self.urls[number % 3 :] + self.urls[: number % 3]:
                for value in (self.old, self.new):
                    began = time.monotonic()
                    answer = status(url, "app", value)
                    with self._changed:
                        self.answers[answer] += 1
                        if value == self.old and answer == 401:
                            self.refused.setdefault(url, began)
                        if value == self.new and answer == 200:
                            self.accepted.setdefault(url, time.monotonic())
                        self._changed.notify_all()

    def run_up(self) -> None:
        """Waits until each client has authenticated everywhere, as it always could."""
        self._wait(lambda: self.answers[200] >= 3 * CLIENTS)
        assert not self.refused

    def wait_for_switch(self, within: float = DEADLINE) -> None:
        """Waits until all replicas refuse the old value and accept the new one."""
        self._wait(lambda: len(self.accepted) == len(self.refused) == 3, within)

    def _wait(self, condition: Callable[[], bool], within: float = DEADLINE) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, within), self.answers
