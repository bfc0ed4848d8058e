"""The command line: the commands with their options, exit codes and error messages.

Heavy modules are imported by the command that needs them, so that `syncd --version` and a probe
cost little.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from syncd import __version__
from syncd.commands.fleet_options import fleet
from syncd.commands.options import (
    DURATION,
    TEXT,
    daemon_config,
    format_option,
    relay_config,
    socket_option,
)
from syncd.core.errors import ConfigurationError, SyncdError
from syncd.core.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from syncd.config.settings import RelaySettings, Settings

_NO_INPUT = 2


class _Command(click.Command):
    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 - the summary is never cut off
        return inspect.cleandoc(self.help or "").partition("\n\n")[0].removesuffix(".")


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="syncd", message="%(prog)s %(version)s")
def cli() -> None:
    """Watches the secret files of Aidbox and reports each change to its consumers."""


@cli.command()
@daemon_config
@click.option("--once", is_flag=True, help="Make one pass, deliver pending events, exit.")
@click.option(
    "--timeout",
    type=DURATION,
    default="60s",
    show_default=True,
    help="With --once: time limit for fetching, scanning and delivery together.",
)
def run(config: str | None, *, once: bool, timeout: float) -> None:
    """Runs the daemon until SIGTERM or SIGINT."""
    from syncd.config.load import config_file, load

    reload = partial(load, config)
    settings = _set_up(reload, listens=not once)
    file = config_file(config, os.environ)

    import anyio

    from syncd.daemon.daemon import Daemon
    from syncd.daemon.engine import open_engine, run_once
    from syncd.system.threads import leave

    if once:
        leave(0 if anyio.run(run_once, settings, timeout, file) else 1)
    opener = partial(open_engine, config=file)
    anyio.run(Daemon(settings, reload=reload, open_engine=opener).run)
    leave(0)


_S = TypeVar("_S", bound="Settings | RelaySettings")


def _set_up(load: Callable[[], _S], *, listens: bool = True) -> _S:
    """Hardens the process, reads the configuration, and configures the log, in this order."""
    import signal

    if listens:
        # by default they end the process: blocked until the daemon has a handler
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))

    from syncd.system.hardening import harden

    refused = harden()  # before a secret can be in memory

    from syncd.telemetry.log import configure

    settings = load()
    configure(settings.log.level, settings.log.format)  # before anything else loads structlog
    if refused:
        import structlog

        for problem in refused:
            structlog.get_logger().warning("process.not_hardened", problem=problem)
    return settings


def _harden() -> None:
    """Protects the memory of a command that may read secrets, as `_set_up` does for the daemon."""
    from syncd.system.hardening import harden

    for problem in harden():
        _print_error(f"{problem}; the command goes on")


@cli.command()
@relay_config
@click.option(
    "--nats", "urls", multiple=True, metavar="URL", help="A NATS server; may be repeated."
)
@click.option(
    "--subject", metavar="SUBJECT", help="The subject of the events; wildcards are allowed."
)
@click.option("--stream", metavar="NAME", help="The stream. Default: the one that has the subject.")
@click.option("--durable", metavar="NAME", help="The durable consumer of this relay on the server.")
@click.option("--credentials-file", metavar="FILE", help="A .creds file for the login.")
def relay(config: str | None, urls: tuple[str, ...], **options: str | None) -> None:
    """Delivers events from NATS to the configured consumers until SIGTERM or SIGINT."""
    from syncd.config.load import load_relay

    given: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if urls:
        given["urls"] = list(urls)
    reload = partial(load_relay, config, given)
    settings = _set_up(reload)

    import anyio

    from syncd.daemon.daemon import Daemon
    from syncd.daemon.relay import open_engine
    from syncd.system.threads import leave

    anyio.run(Daemon(settings, reload=reload, open_engine=open_engine).run)
    leave(0)


@cli.command()
@daemon_config
@click.option("--timeout", type=DURATION, default="60s", show_default=True, help="Time limit.")
def wait(config: str | None, timeout: float) -> None:
    """Waits until every secret of the vault config is present and readable."""
    _harden()

    import anyio

    from syncd.commands.wait import wait as wait_for_all
    from syncd.config.load import load

    missing = anyio.run(wait_for_all, load(config), timeout)
    for line in missing:
        click.echo(visible(line), err=True)
    sys.exit(1 if missing else 0)


def _base_urls(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    if value:
        from syncd.config.validation import check_base_url

        for url in value:
            problem = check_base_url(url, (), "--client-id and --client-secret-file")
            if problem is not None:
                raise click.BadParameter(f"{problem.message}; {problem.hint}", ctx, param)
    return value


@cli.command()
@daemon_config
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "sarif"]),
    default="text",
    show_default=True,
)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@click.option(
    "--aidbox",
    "urls",
    multiple=True,
    metavar="URL",
    callback=_base_urls,
    help="Check this Aidbox, too; may be repeated for more replicas.",
)
@click.option("--client-id", metavar="ID", help="Client to log in as. Default: the consumer's.")
@click.option("--client-secret-file", metavar="FILE", help="File with that Client's secret.")
@click.option("--ca-file", metavar="FILE", help="CA certificates. Default: the system's.")
def check(
    config: str | None,
    format_: str,
    *,
    strict: bool,
    urls: tuple[str, ...],
    client_id: str | None,
    client_secret_file: str | None,
    ca_file: str | None,
) -> None:
    """Lints vault config, mount and daemon configuration, and optionally a live Aidbox."""
    _harden()

    from syncd.lint.check import run_checks
    from syncd.lint.render import as_json, as_text, exit_code

    target = None
    if urls:
        from syncd.lint.aidbox.check import Target

        target = Target(
            urls=tuple(url.rstrip("/") for url in urls),
            client_id=client_id,
            client_secret_file=client_secret_file,
            ca_file=ca_file,
        )
    elif client_id or client_secret_file or ca_file:
        given = "--client-id, --client-secret-file and --ca-file"
        raise click.UsageError(f"{given} are for a live Aidbox; add --aidbox URL")
    findings = run_checks(config, aidbox=target)
    if format_ == "sarif":
        from syncd.lint.sarif import as_sarif

        _print(as_sarif(findings))
    else:
        _print(as_json(findings) if format_ == "json" else as_text(findings))
    sys.exit(exit_code(findings, strict=strict))


@cli.command()
@socket_option
@format_option
def status(socket: str | None, format_: str) -> None:
    """Shows the state of the running daemon.

    Exits with 1 when something needs attention.
    """
    _harden()

    from datetime import UTC, datetime

    from syncd.commands import status as report
    from syncd.commands.client import socket_path

    with _querying():
        found = report.query(socket_path(socket))
    if format_ == "json":
        _print(report.as_json(found))
    else:
        _print(report.as_text(found, datetime.now(UTC)))
    sys.exit(1 if found.status.attention else 0)


@cli.command()
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
    _harden()

    import signal

    from syncd.commands.client import socket_path
    from syncd.commands.events import EventReader, as_json, as_text

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it silently
    path = socket_path(socket)
    reader = EventReader(path, follow, after, secrets, resources, _print_error)
    try:
        with _querying():
            for block in reader.events():
                _print(as_json(block) if format_ == "json" else as_text(block))
    except KeyboardInterrupt:  # click would print an empty line
        sys.exit(130)


@contextmanager
def _querying() -> Iterator[None]:
    """Exits with 2 when the daemon cannot be reached or refuses."""
    from syncd.commands.client import DeniedError, UnreachableError

    try:
        yield
    except (DeniedError, UnreachableError) as error:
        _report(error)
        sys.exit(_NO_INPUT)


@cli.command()
@click.argument("what", type=click.Choice(["vault-config", "config", "event"]))
def schema(what: str) -> None:
    """Prints a JSON Schema (2020-12)."""
    import msgspec

    from syncd.commands.schema import schema_of

    _print(msgspec.json.format(msgspec.json.encode(schema_of(what)), indent=2).decode())


@cli.command()
@click.option("--rotations", type=click.IntRange(min=0), help="Stop after N. Default: at Ctrl-C.")
@click.option(
    "--interval", type=DURATION, default="1s", show_default=True, help="Time between rotations."
)
def demo(rotations: int | None, interval: float) -> None:
    """Rotates secrets in a temporary mount and prints each event on arrival."""
    import anyio

    from syncd.commands.demo import demo as show

    sys.exit(anyio.run(show, rotations, interval))


cli.add_command(fleet)


def main() -> None:
    """Runs a command; reports an error in one line, or one line for each finding."""
    for stream in (sys.stdout, sys.stderr):
        # a locale's encoding may lack characters of a name, which must not end the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="syncd", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "syncd"
        problem = " ".join(error.format_message().split()).removesuffix(".")
        _report(SyncdError(problem, f"see {command} --help"))
        sys.exit(error.exit_code)
    except SyncdError as error:
        _fail(error)
    except BaseExceptionGroup as group:
        _leave(group)
    except Exception as error:  # noqa: BLE001 - its text may hold anything
        _crash(error)


def _fail(error: SyncdError) -> NoReturn:
    _report(error)
    sys.exit(_NO_INPUT if isinstance(error, ConfigurationError) else 1)


def _crash(error: BaseException) -> NoReturn:
    from syncd.telemetry.log import describe

    # without the exception's text, which may quote a value
    _report(SyncdError(f"internal error: {describe(error)}", "please report it"))
    sys.exit(1)


def _leave(group: BaseExceptionGroup) -> NoReturn:
    errors, rest = group.split(SyncdError)
    if rest is not None and not isinstance(rest, Exception):
        raise group  # interrupted
    if errors is None or rest is not None:
        _crash(rest or group)
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, SyncdError)
    _fail(first)


def _print(text: str) -> None:
    """Writes to standard output.

    Raises:
        SyncdError: It cannot be written; a closed pipe is left to click, which exits silently.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        from syncd.system.errnos import reason, remedy

        known = remedy(error, path="", access="", otherwise="")
        what_to_do = f"{known}, or redirect it elsewhere" if known else "redirect it elsewhere"
        raise SyncdError(f"cannot write to standard output: {reason(error)}", what_to_do) from None


def _report(error: SyncdError) -> None:
    """Writes an error to standard error: one line, or one for each finding."""
    for line in error.lines:
        _print_error(line)


def _print_error(line: str) -> None:
    click.echo(f"syncd: {visible(line)}", err=True)
