"""The options of `syncd wait --delivered`; `syncd.commands.delivered` has the work."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from syncd.commands.console import print_error, print_text, report
from syncd.commands.options import TEXT, socket_option
from syncd.core.errors import SyncdError

if TYPE_CHECKING:
    from collections.abc import Callable

_CANNOT_ASK = 2


def delivered_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command."""
    delivered = click.option(
        "--delivered", is_flag=True, help="Wait until consumers have every change."
    )
    adopted = click.option(
        "--adopted", is_flag=True, help="With --delivered: and until adoption is proven."
    )
    consumer = click.option(
        "--consumer", type=TEXT, metavar="NAME", help="With --delivered: only this consumer."
    )
    return delivered(adopted(consumer(socket_option(command))))


def wait_for_delivery(
    timeout: float,
    secrets: tuple[str, ...],
    *,
    delivered: bool,
    adopted: bool,
    consumer: str | None,
    socket: str | None,
) -> bool:
    """Waits and exits with `--delivered`; returns False without it."""
    if not delivered:
        if adopted or consumer or socket:
            raise click.UsageError("--adopted, --consumer and --socket need --delivered")
        return False

    from syncd.commands.client import socket_path
    from syncd.commands.delivered import Delivered, wait

    goal = Delivered(secrets, consumer, adopted)
    try:
        missing = wait(
            socket_path(socket), goal, timeout, lambda line: print_error(f"waiting: {line}")
        )
    except SyncdError as error:
        report(error)
        sys.exit(_CANNOT_ASK)
    for line in missing:
        print_error(line)
    if not missing:
        print_text("consumers have every change" + (", adopted" if adopted else ""))
    sys.exit(1 if missing else 0)
