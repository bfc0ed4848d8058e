"""The command line: what a user types, turned into calls; what went wrong, turned into one line.

Heavy modules are imported by the command that needs them, so that `syncd --version` and a probe
cost little.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from syncd import __version__
from syncd.core.decode import Duration, decode
from syncd.core.errors import ConfigurationError, StateError, SyncdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from syncd.config.settings import RelaySettings, Settings

_NO_INPUT = 2


class _DurationType(click.ParamType[float]):
    """A duration such as `250ms`, `30s`, `2m`, `1h` or a number of seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds, _ = decode(value, Duration)
        if seconds is None:
            self.fail("write a duration such as 250ms, 30s, 2m or 1h", param, ctx)
        return seconds


_DURATION = _DurationType()
_config = click.option(
    "-c",
    "--config",
    "config",
    metavar="FILE",
    help="Configuration; else $SYNCD_CONFIG, else /etc/syncd/syncd.yaml, else the environment.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="syncd", message="%(prog)s %(version)s")
def cli() -> None:
    """Watches mounted secrets for Aidbox, proves what changed, and tells everyone who must know."""


@cli.command()
@_config
@click.option("--once", is_flag=True, help="One pass, deliver what is pending, exit.")
@click.option(
    "--timeout", type=_DURATION, default="60s", show_default=True, help="With --once: how long."
)
def run(config: str | None, *, once: bool, timeout: float) -> None:
    """Runs the daemon until SIGTERM or SIGINT."""
    from syncd.config.load import load  # noqa: PLC0415

    settings = _set_up(partial(load, config), listens=not once)

    import anyio  # noqa: PLC0415

    from syncd.daemon.daemon import Daemon  # noqa: PLC0415
    from syncd.daemon.engine import open_engine, run_once  # noqa: PLC0415

    if once:
        sys.exit(0 if anyio.run(run_once, settings, timeout) else 1)
    anyio.run(Daemon(settings, reload=partial(load, config), open_engine=open_engine).run)


_S = TypeVar("_S", bound="Settings | RelaySettings")


def _set_up(load: Callable[[], _S], *, listens: bool = True) -> _S:
    """What a daemon does first: hardens the process, reads the configuration, sets up the log."""
    import signal  # noqa: PLC0415 - see the module's docstring

    if listens:
        # until it does: by default they would end it
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))

    from syncd.system.hardening import harden  # noqa: PLC0415

    refused = harden()  # before anything is read

    from syncd.telemetry.log import configure  # noqa: PLC0415

    settings = load()
    configure(settings.log.level, settings.log.format)  # before anything else loads structlog
    if refused:
        import structlog  # noqa: PLC0415

        for problem in refused:
            structlog.get_logger().warning("process.not_hardened", problem=problem)
    return settings


@cli.command()
@click.option(
    "-c",
    "--config",
    "config",
    metavar="FILE",
    help="Configuration; else $SYNCD_CONFIG, else /etc/syncd/relay.yaml if it exists.",
)
@click.option("--nats", "urls", multiple=True, metavar="URL", help="A server; may be repeated.")
@click.option("--subject", metavar="SUBJECT", help="Which events: a subject, wildcards allowed.")
@click.option("--stream", metavar="NAME", help="The stream that has them; else it is looked up.")
@click.option("--durable", metavar="NAME", help="This relay's consumer on the server.")
@click.option("--credentials-file", metavar="FILE", help="A .creds file to log in with.")
def relay(config: str | None, urls: tuple[str, ...], **options: str | None) -> None:
    """Takes events from NATS to the consumers configured here, until SIGTERM or SIGINT."""
    from syncd.config.load import load_relay  # noqa: PLC0415

    given: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if urls:
        given["urls"] = list(urls)
    settings = _set_up(partial(load_relay, config, given))

    import anyio  # noqa: PLC0415

    from syncd.daemon.daemon import Daemon  # noqa: PLC0415
    from syncd.daemon.relay import open_engine  # noqa: PLC0415

    reload = partial(load_relay, config, given)
    anyio.run(Daemon(settings, reload=reload, open_engine=open_engine).run)


@cli.command()
@_config
@click.option("--timeout", type=_DURATION, default="60s", show_default=True, help="How long.")
def wait(config: str | None, timeout: float) -> None:
    """Waits until every secret of the vault config is present and readable."""
    import anyio  # noqa: PLC0415

    from syncd.commands.wait import wait as wait_for_all  # noqa: PLC0415
    from syncd.config.load import load  # noqa: PLC0415

    missing = anyio.run(wait_for_all, load(config), timeout)
    for line in missing:
        click.echo(line, err=True)
    sys.exit(1 if missing else 0)


def _base_urls(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    if value:
        from syncd.config.validation import check_base_url  # noqa: PLC0415

        for problem in filter(None, (check_base_url(url, ()) for url in value)):
            raise click.BadParameter(f"{problem.message}; {problem.hint}", ctx, param)
    return value


@cli.command()
@_config
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "sarif"]),
    default="text",
    show_default=True,
)
@click.option("--strict", is_flag=True, help="Exit 1 for warnings too.")
@click.option(
    "--aidbox",
    "urls",
    multiple=True,
    metavar="URL",
    callback=_base_urls,
    help="Read this Aidbox too; may be repeated for more replicas.",
)
@click.option("--client-id", metavar="ID", help="Client to read it as; else the consumer's.")
@click.option("--client-secret-file", metavar="FILE", help="Holds that Client's secret.")
@click.option("--ca-file", metavar="FILE", help="Certificates to trust instead of the system's.")
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
    """Lints vault config, mount and daemon configuration, and a live Aidbox if asked to."""
    from syncd.lint.check import run_checks  # noqa: PLC0415
    from syncd.lint.render import as_json, as_text, exit_code  # noqa: PLC0415

    target = None
    if urls:
        from syncd.lint.aidbox.check import Target  # noqa: PLC0415

        target = Target(
            urls=tuple(url.rstrip("/") for url in urls),
            client_id=client_id,
            client_secret_file=client_secret_file,
            ca_file=ca_file,
        )
    elif client_id or client_secret_file or ca_file:
        raise click.UsageError("these options are for --aidbox; give its URL too")
    findings = run_checks(config, aidbox=target)
    if format_ == "sarif":
        from syncd.lint.sarif import as_sarif  # noqa: PLC0415

        _print(as_sarif(findings))
    else:
        _print(as_json(findings) if format_ == "json" else as_text(findings))
    sys.exit(exit_code(findings, strict=strict))


_socket = click.option(
    "--socket",
    "socket",
    metavar="PATH",
    help="The daemon's; else $SYNCD_SOCKET, else /run/syncd/syncd.sock.",
)
_format = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)


@cli.command()
@_socket
@_format
def status(socket: str | None, format_: str) -> None:
    """Shows what the running daemon knows; exit code 1 when something needs attention."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from syncd.commands import status as report  # noqa: PLC0415
    from syncd.commands.client import socket_path  # noqa: PLC0415

    with _asking():
        found = report.ask(socket_path(socket))
    if format_ == "json":
        _print(report.as_json(found))
    else:
        _print(report.as_text(found, datetime.now(UTC)))
    sys.exit(1 if found.status.attention else 0)


@cli.command()
@_socket
@click.option("--follow", "-f", is_flag=True, help="Go on with what is to come.")
@click.option("--after", metavar="ID", help="Only what came after this event.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="Only of this secret.")
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="TYPE[/ID]",
    help="Only of secrets that this resource may use.",
)
@_format
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
    import signal  # noqa: PLC0415

    from syncd.commands.client import socket_path  # noqa: PLC0415
    from syncd.commands.events import Journal, as_text  # noqa: PLC0415

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    path = socket_path(socket)
    journal = Journal(path, follow, after, secrets, resources, _warn)
    try:
        with _asking():
            for block in journal.events():
                _print(block.data if format_ == "json" else as_text(block))
    except KeyboardInterrupt:  # click would print an empty line
        sys.exit(130)


@contextmanager
def _asking() -> Iterator[None]:
    """Leaves with an exit code of its own when the daemon cannot be asked."""
    from syncd.commands.client import DeniedError, UnreachableError  # noqa: PLC0415

    try:
        yield
    except (DeniedError, UnreachableError) as error:
        _say(error)
        sys.exit(_NO_INPUT)


def _warn(line: str) -> None:
    click.echo(f"syncd: {line}", err=True)


@cli.command()
@click.argument("what", type=click.Choice(["vault-config", "config", "event"]))
def schema(what: str) -> None:
    """Prints a JSON Schema (2020-12)."""
    import msgspec  # noqa: PLC0415

    from syncd.commands.schema import schema_of  # noqa: PLC0415

    _print(msgspec.json.format(msgspec.json.encode(schema_of(what)), indent=2).decode())


@cli.command()
@click.option("--rotations", type=click.IntRange(min=0), help="Stop after N; else at Ctrl-C.")
@click.option(
    "--interval", type=_DURATION, default="1s", show_default=True, help="Between rotations."
)
def demo(rotations: int | None, interval: float) -> None:
    """Rotates secrets in a temporary mount and prints each event as it lands."""
    import anyio  # noqa: PLC0415

    from syncd.commands.demo import demo as show  # noqa: PLC0415

    sys.exit(anyio.run(show, rotations, interval))


def main() -> None:
    """The entry point: runs a command, and says what went wrong in plain lines."""
    try:
        cli(prog_name="syncd", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "syncd"
        message = " ".join(error.format_message().split()).removesuffix(".")
        _warn(f"{message}; see {command} --help")
        sys.exit(error.exit_code)
    except ConfigurationError as error:
        _say(error)
        sys.exit(_NO_INPUT)
    except (StateError, SyncdError) as error:
        _say(error)
        sys.exit(1)
    except BaseExceptionGroup as group:
        _leave(group)
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may hold anything
        _crash(error)


def _crash(error: BaseException) -> NoReturn:
    """A bug: said without the exception's text, which may quote a value."""
    from syncd.telemetry.log import describe  # noqa: PLC0415 - see the module's docstring

    _warn(f"internal error: {describe(error)}; please report it")
    sys.exit(1)


def _leave(group: BaseExceptionGroup) -> None:
    errors, rest = group.split(SyncdError)
    if rest is not None and not isinstance(rest, Exception):
        raise group  # interrupted
    if errors is None or rest is not None:
        _crash(rest or group)
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    _say(first)
    sys.exit(_NO_INPUT if isinstance(first, ConfigurationError) else 1)


def _print(text: str) -> None:
    """Writes to standard output.

    Raises:
        SyncdError: It takes no more; not for a reader that has enough, which click lets go.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SyncdError(
            f"cannot write to standard output: {error.strerror}; mend where it leads"
        ) from None


def _say(error: BaseException) -> None:
    for line in str(error).splitlines():
        click.echo(f"syncd: {line}", err=True)
