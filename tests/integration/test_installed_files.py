"""What `make install` and packages install beside syncd: man pages, completion, documentation."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from support.documents import REPOSITORY
from support.links import broken_links

from syncd.commands.main import cli
from syncd.commands.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/usr/share, as installed."""
    directory = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            *("make", "-s", "install-files", f"DESTDIR={directory}/root", "prefix=/usr"),
            *(f"STAGE={directory}/stage", "INTERPRETER=/usr/bin/python3"),
            f"AS_INSTALLED=PYTHONPATH={REPOSITORY} {sys.executable} -B",
        ],
        cwd=REPOSITORY,
        check=True,
    )
    return directory / "root" / "usr" / "share"


def named_commands(
    command: click.Command, name: str = "syncd"
) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for word, found in command.commands.items():
            yield from named_commands(found, f"{name}-{word}")


def page(share: Path, name: str) -> str:
    """A page without its formatting."""
    text = gzip.decompress((share / "man" / f"man{name[-1]}" / f"{name}.gz").read_bytes()).decode()
    return re.sub(r"\\f[BR]", "", text).replace("\\-", "-").replace("\\e", "\\")


def test_a_page_for_each_command(share: Path) -> None:
    """It has the command's options and exit codes, and no Markdown."""
    commands = dict(named_commands(cli))
    installed = {path.name for path in (share / "man" / "man1").iterdir()}
    assert installed == {f"{name}.1.gz" for name in commands}
    for name, command in commands.items():
        text = page(share, f"{name}.1")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in text
        if name != "syncd":
            assert re.search(r"\n\.SH EXIT STATUS\n\.TP\nsyncd .*\n.+\n", text), name
        assert not re.search(r"`|\]\(|\*\*", text), name


def test_a_page_for_the_configuration(share: Path) -> None:
    """It has each key and its meaning."""
    text = page(share, "syncd.yaml.5")
    for name in schema_of("config")["$defs"]["Webhook"]["properties"].keys() - {"kind"}:
        assert re.search(rf"\n\.TP\n.*\b{name}\b.*\n.+\n", text), name
    assert "\nwatch.settle (default: 50ms)\ntime between two identical looks" in text
    assert not re.search(r"`|\]\(|\*\*|\| ", text)


def test_the_completion_of_shells(share: Path) -> None:
    """Each shell has a script that asks syncd."""
    for name in (
        "bash-completion/completions/syncd",
        "zsh/site-functions/_syncd",
        "fish/vendor_completions.d/syncd.fish",
    ):
        assert "_SYNCD_COMPLETE=" in (share / name).read_text()


def test_the_links_of_the_documentation(share: Path) -> None:
    """Each leads to a file or a heading that is installed, too; pictures among them."""
    assert broken_links(str(share / "doc" / "syncd")) == []
    assert (share / "doc/syncd/docs/alerts.md").exists()  # the alerts' runbook_url
    (share / "doc" / "syncd" / "docs" / "ui-dark.png").unlink()
    (broken,) = broken_links(str(share / "doc" / "syncd"))
    assert broken == "docs/ui.md: ui-dark.png"
