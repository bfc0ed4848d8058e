"""Types and options that several commands share."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Final

import click

from syncd.core.decode import Duration, decode
from syncd.core.text import encodable


class Command(click.Command):
    """A command whose summary is never cut off in the list of commands."""

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002
        """The whole summary."""
        return inspect.cleandoc(self.help or "").partition("\n\n")[0].removesuffix(".")


class DurationType(click.ParamType[float]):
    """A duration such as `250ms`, `30s`, `2m`, `1h`, `30d` or a number of seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds."""
        seconds, _ = decode(value, Duration)
        if seconds is None:
            self.fail(f"{value!r} is not a duration; write one such as 30s, 2m or 30d", param, ctx)
        return seconds


class TextType(click.ParamType[str]):
    """Text that a request can carry; an argument of the shell may hold any bytes."""

    name = "text"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """The text, if it is UTF-8."""
        text = str(value)
        if encodable(text) != text:
            self.fail("it is not UTF-8", param, ctx)
        return text


DURATION: Final = DurationType()
TEXT: Final = TextType()
_config = partial(click.option, "-c", "--config", "config", metavar="FILE")
daemon_config: Final = _config(
    help="Configuration file. Default: $SYNCD_CONFIG, else /etc/syncd/syncd.yaml, else the "
    "environment alone."
)
relay_config: Final = _config(
    help="Configuration file. Default: $SYNCD_CONFIG, else /etc/syncd/relay.yaml if it exists."
)

socket_option: Final = click.option(
    "--socket",
    "socket",
    metavar="PATH",
    help="The daemon's socket. Default: $SYNCD_SOCKET, else /run/syncd/syncd.sock.",
)
format_option: Final = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
