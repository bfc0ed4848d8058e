"""`syncd fleet`: options and exit codes; `syncd.commands.fleet` has the work."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from syncd.commands.console import harden_command, print_error, print_text, report
from syncd.commands.options import DURATION, TEXT, Command, format_option, relay_config
from syncd.core.errors import RefusedError, TemporaryError
from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from syncd.config.settings import RelaySource

_CANNOT_ASK: Final = 2


@click.group()
def fleet() -> None:
    """Shows whether every installation has the newest secrets."""


def _source_options(command: Callable[..., None]) -> Callable[..., None]:
    nats = click.option(
        "--nats", "urls", multiple=True, metavar="URL", help="A NATS server; may be repeated."
    )
    bucket = click.option(
        "--bucket", metavar="NAME", help="The bucket that installations write to."
    )
    login = click.option("--credentials-file", metavar="FILE", help="A .creds file for the login.")
    return relay_config(nats(bucket(login(command))))


def _source(
    config: str | None, urls: tuple[str, ...], bucket: str | None, credentials_file: str | None
) -> tuple[RelaySource, str]:
    """Servers, login and bucket: from the options, else from the configuration of a relay."""
    from syncd.config.load import load_relay
    from syncd.telemetry.log import configure

    harden_command()
    configure("warning", "auto")
    options = {"urls": list(urls), "state_bucket": bucket, "credentials_file": credentials_file}
    given = {name: value for name, value in options.items() if value}
    source = load_relay(config, {"subject": "syncd.>", **given}).relay
    if source.state_bucket is None:
        raise click.UsageError("no bucket is given; add --bucket, or relay.state_bucket to -c")
    return source, source.state_bucket


@contextmanager
def _asking() -> Iterator[None]:
    """Exits with 2 when the bucket cannot be read."""
    try:
        yield
    except (RefusedError, TemporaryError) as error:
        report(error)
        sys.exit(_CANNOT_ASK)
    except KeyboardInterrupt:
        sys.exit(130)


@fleet.command("status", cls=Command)
@_source_options
@click.option("--secret", type=TEXT, metavar="NAME", help="Only this secret.")
@format_option
def fleet_status(secret: str | None, format_: str, **source: Any) -> None:
    """Shows how many installations have the newest version of each secret, and which do not.

    Exits with 1 unless all have it.
    """
    server, bucket = _source(**source)

    import anyio

    from syncd.commands.fleet import as_json, as_text, status
    from syncd.commands.table import Screen

    with _asking():
        found = anyio.run(status, server, bucket, secret)
    print_text(as_json(found) if format_ == "json" else as_text(found, Screen.of(sys.stdout)))
    sys.exit(0 if found.converged else 1)


@fleet.command("wait", cls=Command)
@_source_options
@click.option("--secret", type=TEXT, metavar="NAME", required=True, help="The secret.")
@click.option("--version", metavar="V", help="The version to wait for. Default: the newest.")
@click.option(
    "--from", "before", metavar="V", help="The version before the rotation: wait for another."
)
@click.option("--adopted", is_flag=True, help="Wait until adoption is proven, too.")
@click.option("--timeout", type=DURATION, default="10m", show_default=True, help="Time limit.")
def fleet_wait(
    secret: str,
    version: str | None,
    before: str | None,
    timeout: float,
    *,
    adopted: bool,
    **source: Any,
) -> None:
    """Waits until every installation has the newest version of a secret.

    Exits with 1 at the time limit.
    """
    server, bucket = _source(**source)

    import anyio

    from syncd.commands.fleet import Goal, wait

    goal = Goal(secret, version, before, adopted)
    with _asking():
        left = anyio.run(
            wait, server, bucket, goal, timeout, lambda line: print_text(visible(line))
        )
    if left is not None:
        print_error(f"{left}; see syncd fleet status")
    sys.exit(0 if left is None else 1)
