"""Makes consumers from their configuration; the one module that knows every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from syncd.config.settings import Aidbox, Exec, Nats, grant, grant_of
from syncd.core.adoption import mailbox_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from random import Random

    from syncd.config.settings import ConsumerSettings, EventTypes
    from syncd.consumers.aidbox.leadership import Leadership
    from syncd.consumers.aidbox.recreate import Recreator
    from syncd.consumers.aidbox.rollout import Roller
    from syncd.consumers.aidbox.verify import Verifier
    from syncd.consumers.delivery import Consumer
    from syncd.consumers.state import StateWriter
    from syncd.core.events import Event, Stamp
    from syncd.core.model import Grant, Known
    from syncd.ledger.ledger import Ledger
    from syncd.net.kubernetes import Cluster
    from syncd.telemetry.metrics import Metrics


_RECREATE: Final = "recreate_destinations"
_ROLLOUT: Final = "rollout"
_OF_ROLLOUT: Final[EventTypes] = ("changed", "vault_config")
_CHANGED: Final[EventTypes] = ("changed",)


def open_consumer(settings: ConsumerSettings, stamp: Stamp, *, shared: bool = False) -> Consumer:
    """Makes a consumer; it connects at its first delivery.

    Args:
        settings: Its settings.
        stamp: The attributes that this installation adds to its events.
        shared: Whether other installations have the same versions.

    Raises:
        RefusedError: The configuration cannot be used.
    """
    if isinstance(settings, Aidbox):
        from syncd.consumers.aidbox.consumer import AidboxConsumer  # noqa: PLC0415 - only where configured

        return AidboxConsumer(settings, stamp, shared=shared)
    if isinstance(settings, Nats):
        from syncd.consumers.nats import NatsConsumer  # noqa: PLC0415 - 7 MiB, when configured

        return NatsConsumer(settings, stamp)
    if isinstance(settings, Exec):
        from syncd.consumers.exec import ExecConsumer  # noqa: PLC0415 - only where configured

        return ExecConsumer(settings, stamp)
    from syncd.consumers.webhook import WebhookConsumer  # noqa: PLC0415 - HTTP is a fifth of a start

    return WebhookConsumer(settings, stamp)


def open_verifier(
    settings: ConsumerSettings,
    consumer: Consumer,
    *,
    stamp: Stamp,
    ledger: Ledger,
    metrics: Metrics,
    rng: Random,
    read: Callable[[str, str, str], bytes | None],
    publish: Callable[[Event], Awaitable[None]],
) -> Verifier | None:
    """Makes the verifier of a consumer, or None where its actions do not include `verify`.

    `consumer` is what `open_consumer` made of the same settings; the other arguments are those of
    `Verifier`.

    Raises:
        RefusedError: The configuration cannot be used.
    """
    if not isinstance(settings, Aidbox) or "verify" not in settings.actions:
        return None
    from syncd.consumers.aidbox.consumer import (  # noqa: PLC0415
        AidboxConsumer,
        open_replicas,
        open_session,
    )
    from syncd.consumers.aidbox.verify import Verifier  # noqa: PLC0415 - only where configured

    assert isinstance(consumer, AidboxConsumer)
    replicas = open_replicas(settings)
    return Verifier(
        settings.name,
        grant(settings.scope, extra=False),
        settings.verify_timeout,
        replicas=replicas,
        session=open_session(settings, replicas),
        ledger=ledger,
        read=read,
        publish=publish,
        stamp=stamp,
        cause=consumer if "drop_cache" in settings.actions else None,
        metrics=metrics.adoption(settings.name),
        rng=rng,
    )


def open_recreator(
    settings: ConsumerSettings,
    consumer: Consumer,
    *,
    stamp: Stamp,
    ledger: Ledger,
    leadership: Callable[[], Leadership],
    inventory: Callable[[], Mapping[str, Known]],
    rng: Random,
    publish: Callable[[Event], Awaitable[None]],
) -> Recreator | None:
    """Makes what recreates destinations for a consumer, or None where its actions do not say so.

    `consumer` is what `open_consumer` made of the same settings, `leadership` makes what decides
    who acts; the other arguments are those of `Recreator`.

    Raises:
        RefusedError: The configuration cannot be used.
    """
    if not isinstance(settings, Aidbox) or _RECREATE not in settings.actions:
        return None
    from syncd.consumers.aidbox.consumer import (  # noqa: PLC0415
        AidboxConsumer,
        open_replicas,
        open_session,
    )
    from syncd.consumers.aidbox.recreate import Recreator  # noqa: PLC0415 - only where configured

    assert isinstance(consumer, AidboxConsumer)
    replicas = open_replicas(settings)
    return Recreator(
        settings,
        consumer,
        grant(settings.scope, _CHANGED, extra=False),
        replicas=replicas,
        session=open_session(settings, replicas),
        ledger=ledger,
        leadership=leadership(),
        inventory=inventory,
        publish=publish,
        stamp=stamp,
        rng=rng,
    )


def open_roller(
    settings: ConsumerSettings,
    *,
    cluster: Callable[[], Cluster],
    leadership: Callable[[], Leadership],
    inventory: Callable[[], Mapping[str, Known]],
    ledger: Ledger,
    rng: Random,
) -> Roller | None:
    """Makes what rolls a workload for a consumer, or None where its actions do not say so.

    The arguments are those of `Roller`.
    """
    if not isinstance(settings, Aidbox) or settings.rollout is None:
        return None
    from syncd.consumers.aidbox.rollout import Roller  # noqa: PLC0415 - only where configured

    return Roller(
        settings.name,
        settings.rollout,
        grant(settings.scope, _OF_ROLLOUT),
        cluster=cluster,
        leadership=leadership,
        inventory=inventory,
        ledger=ledger,
        rng=rng,
    )


def open_state_writer(
    settings: ConsumerSettings,
    *,
    instance: str,
    ledger: Ledger,
    inventory: Callable[[], Mapping[str, Known]],
    key_id: Callable[[], str],
    rng: Random,
) -> StateWriter | None:
    """Makes the writer of a consumer's state bucket, or None where it has none.

    The arguments are those of `StateWriter`.
    """
    if not isinstance(settings, Nats) or settings.state_bucket is None:
        return None
    from syncd.consumers.state import StateWriter  # noqa: PLC0415 - 7 MiB, when configured

    return StateWriter(
        settings, instance=instance, ledger=ledger, inventory=inventory, key_id=key_id, rng=rng
    )


def mailboxes(consumers: Iterable[ConsumerSettings]) -> dict[str, Grant]:
    """The mailboxes of a configuration, each with what it may hold."""
    found = {}
    for settings in consumers:
        found[settings.name] = grant_of(settings)
        if isinstance(settings, Aidbox) and "verify" in settings.actions:
            found[mailbox_of(settings.name)] = grant(settings.scope, extra=False)
        if isinstance(settings, Aidbox) and _RECREATE in settings.actions:
            found[mailbox_of(settings.name, _RECREATE)] = grant(
                settings.scope, _CHANGED, extra=False
            )
        if isinstance(settings, Aidbox) and settings.rollout is not None:
            found[mailbox_of(settings.name, _ROLLOUT)] = grant(settings.scope, _OF_ROLLOUT)
    return found
