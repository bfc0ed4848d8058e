"""The commands that ask a running daemon: its state, its events and history, its consumers."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from syncd.commands.console import harden_command, print_error, print_text, report
from syncd.commands.options import DURATION, TEXT, Command, format_option, socket_option
from syncd.core.errors import SyncdError
from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

UNREACHABLE: Final = 2
_TEST_LIMIT: Final = 3600.0
"""Seconds that a test may take: that of a command has the command's timeout."""

_CLEAR: Final = "\x1b[H\x1b[2J"


@click.command(cls=Command)
@click.argument("names", nargs=-1, type=TEXT, metavar="[NAME]...")
@socket_option
@click.option("--problems", is_flag=True, help="Only what is wrong or pending.")
@click.option(
    "--watch",
    "interval",
    type=DURATION,
    is_flag=False,
    flag_value="2s",
    metavar="INTERVAL",
    help="Repeat until interrupted, by default every 2s.",
)
@format_option
def status(
    names: tuple[str, ...],
    socket: str | None,
    format_: str,
    interval: float | None,
    *,
    problems: bool,
) -> None:
    """Shows the state of the running daemon, or of some secrets, consumers and providers.

    Exits with 1 when something needs attention.
    """
    harden_command()

    from syncd.commands.client import socket_path

    path = socket_path(socket)
    if interval is None:
        sys.exit(_show_status(path, names, format_, problems=problems))
    while True:
        if sys.stdout.isatty() and format_ == "text":
            click.echo(_CLEAR, nl=False)
        _show_status(path, names, format_, problems=problems)
        try:
            time.sleep(interval)
        except KeyboardInterrupt:
            sys.exit(130)
        print_text("")


def _show_status(path: str, names: tuple[str, ...], format_: str, *, problems: bool) -> int:
    from datetime import UTC, datetime

    from syncd.commands.status import as_details, as_json, as_text, query
    from syncd.commands.table import Screen

    with querying():
        found = query(path)
        if names:
            found = found.only(names)
    shown = found.problems() if problems else found
    screen, now = Screen.of(sys.stdout), datetime.now(UTC)
    if format_ == "json":
        print_text(as_json(shown))
    elif names:
        print_text(as_details(shown, now, screen))
    else:
        print_text(as_text(shown, now, screen))
    return int(not found.is_well)


@click.command(cls=Command)
@socket_option
@click.option("--follow", "-f", is_flag=True, help="Keep showing new events.")
@click.option("--after", metavar="ID", type=TEXT, help="Only events after the event with this id.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    type=TEXT,
    metavar="NAME",
    help="Only events of this secret; may be repeated.",
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    type=TEXT,
    metavar="TYPE[/ID]",
    help="Only events of secrets that this resource may use; may be repeated.",
)
@format_option
def events(
    socket: str | None,
    after: str | None,
    secrets: tuple[str, ...],
    resources: tuple[str, ...],
    format_: str,
    *,
    follow: bool,
) -> None:
    """Shows past events and, with --follow, the live stream."""
    harden_command()

    import signal

    from syncd.commands.client import socket_path
    from syncd.commands.events import EventReader, as_json, as_text

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it silently
    path = socket_path(socket)
    reader = EventReader(path, follow, after, secrets, resources, print_error)
    try:
        with querying():
            for block in reader.events():
                print_text(as_json(block) if format_ == "json" else as_text(block))
    except KeyboardInterrupt:  # click would print an empty line
        sys.exit(130)


@click.command(cls=Command)
@socket_option
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    type=TEXT,
    metavar="NAME",
    help="Only rotations of this secret; may be repeated.",
)
@click.option("--consumer", type=TEXT, metavar="NAME", help="Only what concerns this consumer.")
@click.option(
    "--limit",
    "most",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    metavar="N",
    help="The newest N rotations.",
)
@format_option
def history(
    socket: str | None, secrets: tuple[str, ...], consumer: str | None, most: int, format_: str
) -> None:
    """Shows what became of rotations: seen, each attempt to deliver, delivered, adopted."""
    harden_command()

    from syncd.commands.client import socket_path
    from syncd.commands.history import as_json, as_text, query
    from syncd.commands.table import Screen

    with querying():
        found = query(socket_path(socket), secrets, consumer, most)
    print_text(as_json(found) if format_ == "json" else as_text(found, Screen.of(sys.stdout)))


@click.command(cls=Command)
@click.argument("consumer", required=False, type=TEXT)
@socket_option
def retry(consumer: str | None, socket: str | None) -> None:
    """Tries to deliver what waits now, regardless of the backoff."""
    harden_command()

    from urllib.parse import quote

    from syncd.api.actions import RetryReport
    from syncd.api.report import StatusReport
    from syncd.commands.client import Client, socket_path

    with querying(), Client(socket_path(socket)) as client:
        names = client.get("/v1/status", StatusReport).consumers if consumer is None else [consumer]
        for name in names:
            found = client.post(f"/v1/consumers/{quote(name, safe='')}/retry", RetryReport)
            print_text(f"{visible(found.consumer)}: {found.pending} pending, trying now")
        if not names:
            print_text("there are no consumers")


@click.command(cls=Command)
@click.argument("consumer", type=TEXT)
@click.option("--secret", type=TEXT, metavar="NAME", help="Only this secret.")
@socket_option
def resend(consumer: str, secret: str | None, socket: str | None) -> None:
    """Sends a consumer the newest state again, for one that was restored from a backup."""
    harden_command()

    from urllib.parse import quote

    from syncd.api.actions import ResendReport
    from syncd.commands.client import Client, socket_path

    with querying(), Client(socket_path(socket)) as client:
        parameters = {} if secret is None else {"secret": secret}
        path = f"/v1/consumers/{quote(consumer, safe='')}/resend"
        found = client.post(path, ResendReport, parameters)
    print_text(f"{visible(found.consumer)}: sending {len(found.secrets)} secrets")


@click.command(cls=Command)
@click.argument("consumer", type=TEXT)
@socket_option
@format_option
def test(consumer: str, socket: str | None, format_: str) -> None:
    """Sends a consumer an io.syncd.ping event now, and shows the answer.

    Of Aidbox it reads something, as every replica's Client. Exits with 1 when it is not
    acknowledged.
    """
    harden_command()

    from urllib.parse import quote

    import msgspec

    from syncd.api.actions import TestReport
    from syncd.commands.client import Client, socket_path
    from syncd.core.text import escape_json

    with querying(), Client(socket_path(socket)) as client:
        path = f"/v1/consumers/{quote(consumer, safe='')}/test"
        found = client.post(path, TestReport, limit=_TEST_LIMIT)
    if format_ == "json":
        print_text(msgspec.json.format(escape_json(msgspec.json.encode(found)), indent=2).decode())
    else:
        outcome = "acknowledged" if found.acknowledged else "not acknowledged"
        print_text(f"{visible(found.consumer)}: {outcome}")
        what = "requests" if found.targets else "event    io.syncd.ping"
        print_text(f"  {what} {found.event}")
        print_text(f"  address  {visible(found.address)}")
        print_text(f"  TLS      {'verified' if found.tls else 'none'}")
        if found.answer is not None:
            print_text(f"  answer   {visible(found.answer)}")
        elif not found.targets:
            print_text(f"  status   {found.status if found.status is not None else 'no answer'}")
        for target in found.targets:
            answer = target.status if target.status is not None else "no answer"
            print_text(f"  status   {answer}  {visible(target.address)}")
        print_text(f"  time     {found.seconds * 1000:.1f} ms")
        if found.problem is not None:
            print_text(f"  problem  {visible(found.problem)}")
    sys.exit(0 if found.acknowledged else 1)


@click.command(cls=Command)
@socket_option
@click.option(
    "--listen",
    metavar="ADDRESS",
    default="127.0.0.1:0",
    show_default=True,
    help="Address on loopback; port 0 is any free one.",
)
def ui(socket: str | None, listen: str) -> None:
    """Serves a page for a browser, until interrupted.

    Prints its address, which one browser can open once.
    """
    harden_command()

    import anyio

    from syncd.commands.client import socket_path
    from syncd.commands.ui import serve

    with querying():
        anyio.run(serve, socket_path(socket), listen, print_text)


@contextmanager
def querying() -> Iterator[None]:
    """Exits with 2 when the daemon cannot be reached or refuses."""
    try:
        yield
    except SyncdError as error:
        report(error)
        sys.exit(UNREACHABLE)


COMMANDS: Final = (status, events, history, test, retry, resend, ui)
