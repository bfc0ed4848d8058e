"""The man pages and the completion of shells, made from the command line itself and README.md.

    PYTHONPATH=DIRECTORY_OF_SYNCD python release/manual.py OUT

writes OUT/man1/syncd.1 and a page for each command, OUT/man5/syncd.yaml.5, and OUT/completions for
bash, zsh and fish. Commands and options are click's; exit codes and keys of the configuration are
those of README's tables, so that nothing is written twice.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import get_completion_class

from syncd import __version__
from syncd.commands.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

README: Final = Path(__file__).parents[1] / "README.md"
_LINK: Final = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_CODE: Final = re.compile(r"`([^`]+)`")
_EXIT_CODES: Final = re.compile(r"^\| `(syncd [^`]*)` \| (.*) \|$", re.MULTILINE)
_CELL: Final = re.compile(r"(?<!\\)\|")
_FILES: Final = (
    ("/etc/syncd/syncd.yaml", "the configuration, see syncd.yaml(5)"),
    ("/var/lib/syncd", "the state: ledger and fingerprint key, no secrets"),
    ("/run/syncd/syncd.sock", "the socket of the API, which the commands ask"),
    ("/usr/share/doc/syncd", "the documentation: README.md, and a guide for each purpose in docs"),
)


def main() -> None:
    """Writes everything into the directory that is the only argument."""
    out = Path(sys.argv[1])
    readme = README.read_text()
    pages = dict(command_pages(readme))
    pages["man5/syncd.yaml.5"] = configuration_page(readme)
    for shell in ("bash", "zsh", "fish"):
        completion = get_completion_class(shell)
        assert completion is not None
        pages[f"completions/{shell}"] = completion(cli, {}, "syncd", "_SYNCD_COMPLETE").source()
    for name, text in pages.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)


def command_pages(readme: str) -> Iterator[tuple[str, str]]:
    """A page for the program and for each command, by file name."""
    codes = _EXIT_CODES.findall(readme.replace(r"\|", "|"))
    for path, command in _commands(cli, ("syncd",)):
        yield f"man1/{'-'.join(path)}.1", _page(path, command, codes)


def _commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, found in sorted(command.commands.items()):
            yield from _commands(found, (*path, name))


def _page(path: tuple[str, ...], command: click.Command, codes: list[tuple[str, str]]) -> str:
    context = click.Context(command, info_name=path[-1])
    lines = [_title("-".join(path), 1)]
    lines += [".SH NAME", f"{_escape('-'.join(path))} \\- {_text(_summary(command))}"]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f"{_bold(' '.join(path))} {_escape(usage)}"]
    lines += [".SH DESCRIPTION", _text(command.help or "")]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        for name, found in sorted(command.commands.items()):
            lines += [".TP", _bold(f"{' '.join(path)} {name}"), _text(_summary(found))]
    lines += [".SH OPTIONS"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", _bold(record[0]), _text(record[1])]
    if len(path) > 1:
        lines += [".SH EXIT STATUS"]
        for usage, meaning in codes:
            if _is_for(usage, path):
                lines += [".TP", _bold(usage), _text(meaning)]
    else:
        lines += [".SH FILES"]
        for name, meaning in _FILES:
            lines += [".TP", _bold(name), _text(meaning)]
    pages = ("syncd.yaml(5)",) if len(path) == 1 else ("syncd(1)", "syncd.yaml(5)")
    if isinstance(command, click.Group):
        pages = (*(f"{'-'.join(path)}-{name}(1)" for name in sorted(command.commands)), *pages)
    lines += [".SH SEE ALSO", _escape(", ".join(pages))]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command) -> str:
    return (command.help or "").partition("\n\n")[0].removesuffix(".")


def _is_for(usage: str, path: tuple[str, ...]) -> bool:
    """Whether a usage such as `syncd fleet status|wait` is this command's."""
    words = usage.split()
    return all(name in word.split("|") for name, word in zip(path, words, strict=False))


def configuration_page(readme: str) -> str:
    """The reference of the configuration."""
    section = readme.partition("\n## Configuration\n")[2].partition("\n## ")[0]
    lines = [_title("syncd.yaml", 5), ".SH NAME", "syncd.yaml \\- the configuration of syncd"]
    lines += [".SH DESCRIPTION"]
    for block in section.strip().split("\n\n"):
        if not block.startswith("| "):
            lines += [".PP", _text(block)]
            continue
        header, _, *rows = block.splitlines()
        default = "default" in header
        for row in rows:
            key, *values = (cell.strip() for cell in _CELL.split(row)[1:-1])
            given, meaning = values if default else ("", *values)
            said = f" (default: {_text(given)})" if given else ""
            lines += [".TP", f"{_text(key)}{said}", _text(meaning)]
    lines += [".SH SEE ALSO", "syncd(1)"]
    return "\n".join(lines) + "\n"


def _title(name: str, section: int) -> str:
    # ragged right and without hyphens: names and paths stay whole
    return f'.TH "{_plain(name.upper())}" "{section}" "" "syncd {__version__}" "syncd"\n.ad l\n.nh'


def _text(markdown: str) -> str:
    """A paragraph: code is bold, a link is its text."""
    flat = " ".join(_LINK.sub(r"\1", markdown.replace(r"\|", "|").replace("\b", "")).split())
    parts = _CODE.split(flat)
    marked = "".join(
        f"\\fB{_plain(part)}\\fR" if index % 2 else _plain(part) for index, part in enumerate(parts)
    )
    return f"\\&{marked}" if marked[:1] in {".", "'"} else marked


def _bold(text: str) -> str:
    return f"\\fB{_plain(text)}\\fR"


def _escape(text: str) -> str:
    escaped = _plain(text)
    return f"\\&{escaped}" if escaped[:1] in {".", "'"} else escaped


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    main()
