"""The command line: the commands with their options, exit codes and error messages.

Heavy modules are imported by the command that needs them, so that `syncd --version` and a probe
cost little.
"""

from __future__ import annotations

import io
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from syncd import __version__
from syncd.commands.console import harden_command, print_text, report
from syncd.commands.delivered_options import delivered_options, wait_for_delivery
from syncd.commands.fleet_options import fleet
from syncd.commands.options import (
    DURATION,
    TEXT,
    Command,
    daemon_config,
    relay_config,
)
from syncd.commands.queries import COMMANDS
from syncd.core.errors import ConfigurationError, SyncdError
from syncd.core.text import visible
from syncd.system.lean_import import import_daemon_libraries
from syncd.system.memory import uncollected

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.config.settings import RelaySettings, Settings

NO_INPUT: Final = 2


class _Group(click.Group):
    command_class = Command


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
    with uncollected():
        import_daemon_libraries()

        from syncd.config.load import config_file, load

        reload = partial(load, config)
        settings = _set_up(reload, listens=not once)
        file = config_file(config, os.environ)

        import anyio

        from syncd.daemon.engine import open_engine, run_once
        from syncd.system.threads import leave

    if once:
        leave(0 if anyio.run(run_once, settings, timeout, file) else 1)

    with uncollected():
        from syncd.daemon.daemon import Daemon

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
    given: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if urls:
        given["urls"] = list(urls)
    with uncollected():
        import_daemon_libraries()

        from syncd.config.load import load_relay

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
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    type=TEXT,
    metavar="NAME",
    help="Wait for this secret only; may be repeated.",
)
@delivered_options
def wait(config: str | None, timeout: float, secrets: tuple[str, ...], **options: Any) -> None:
    """Waits until every secret of the vault config is present and readable.

    Reports what is missing at once, and when it changes. With --delivered, asks the running daemon
    instead, and waits until its consumers have acknowledged every change.
    """
    harden_command()
    if wait_for_delivery(timeout, secrets, **options):
        return

    import anyio

    from syncd.commands.wait import wait as wait_for_all
    from syncd.config.load import load

    waiting = partial(wait_for_all, only=secrets, report=_progress)
    missing = anyio.run(waiting, load(config), timeout)
    for line in missing:
        click.echo(visible(line), err=True)
    sys.exit(1 if missing else 0)


def _progress(line: str) -> None:
    click.echo(visible(line))  # errors are what is missing at the end


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
    "--vault",
    is_flag=True,
    help="Log in to the vaults, examine each object, list what would be written; write nothing.",
)
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
@click.option("--consumers", "connect", is_flag=True, help="Connect to consumers; sends nothing.")
@click.option("--as", "user", metavar="USER", help="Judge permissions for this user; as root.")
@click.option(
    "--unit",
    metavar="UNIT",
    help="Judge for the user, credentials and environment of this unit; as root, syncd.service "
    "by default if it exists.",
)
def check(
    config: str | None,
    format_: str,
    *,
    strict: bool,
    connect: bool,
    vault: bool,
    urls: tuple[str, ...],
    client_id: str | None,
    client_secret_file: str | None,
    ca_file: str | None,
    user: str | None,
    unit: str | None,
) -> None:
    """Lints vault config, mount and configuration, and optionally the vaults and a live Aidbox."""
    harden_command()

    from syncd.lint.check import run_checks
    from syncd.lint.render import as_json, as_text, exit_code
    from syncd.lint.runner import find_runner

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
    if user is not None and unit is not None:
        raise click.UsageError("--as and --unit contradict each other; give one of them")
    runner = find_runner(user, unit)
    environ = runner.environment(os.environ)
    if vault:
        from syncd.lint import vaults
        from syncd.telemetry.log import configure

        configure("warning", "auto")  # to standard error, apart from the findings
        if runner.identity is not None:
            vaults.preload()
    config = runner.config(config, environ)
    findings = run_checks(config, environ, aidbox=target, runner=runner, connect=connect)
    judged_for = str(runner) if runner.identity or runner.unit else None
    files = None
    if vault:
        more, files = vaults.dry_run(config, environ)
        findings += more
    if format_ == "sarif":
        from syncd.lint.sarif import as_sarif

        print_text(as_sarif(findings))
    else:
        print_text((as_json if format_ == "json" else as_text)(findings, judged_for, files))
    sys.exit(exit_code(findings, strict=strict))


@cli.command()
@click.argument("what", type=click.Choice(["vault-config", "config", "relay", "event"]))
def schema(what: str) -> None:
    """Prints a JSON Schema (2020-12)."""
    import msgspec

    from syncd.commands.schema import schema_of

    print_text(msgspec.json.format(msgspec.json.encode(schema_of(what)), indent=2).decode())


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


for _command in (*COMMANDS, fleet):
    cli.add_command(_command)


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
        report(SyncdError(problem, f"see {command} --help"))
        sys.exit(error.exit_code)
    except SyncdError as error:
        _fail(error)
    except BaseExceptionGroup as group:
        _leave(group)
    except Exception as error:  # noqa: BLE001 - its text may hold anything
        _crash(error)


def _fail(error: SyncdError) -> NoReturn:
    report(error)
    sys.exit(NO_INPUT if isinstance(error, ConfigurationError) else 1)


def _crash(error: BaseException) -> NoReturn:
    from syncd.telemetry.unexpected import unexpected

    report(unexpected(error))
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
