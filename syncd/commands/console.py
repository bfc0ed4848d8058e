"""What a command writes, and how it protects itself: lines, never a traceback."""

from __future__ import annotations

import click

from syncd.core.errors import SyncdError
from syncd.core.text import visible


def harden_command() -> None:
    """Protects the memory of a command that may read secrets, as the daemon does its own."""
    from syncd.system.hardening import harden

    for problem in harden():
        print_error(f"{problem}; the command goes on")


def print_text(text: str) -> None:
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


def report(error: SyncdError) -> None:
    """Writes an error to standard error: one line, or one for each finding."""
    for line in error.lines:
        print_error(line)


def print_error(line: str) -> None:
    """Writes a line to standard error."""
    click.echo(f"syncd: {visible(line)}", err=True)
