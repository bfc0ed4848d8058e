"""How a command ends: what went wrong is one line and an exit code, whatever it was."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from support.documents import document
from support.world import CANARY

from syncd.commands import main as cli
from syncd.core.errors import ConfigurationError, StateError
from syncd.core.findings import finding

if TYPE_CHECKING:
    from collections.abc import Callable

UNUSABLE = ConfigurationError([finding("config-invalid", "/c.yaml", "a", "is wrong", "fix it")])
FULL = StateError("cannot use the ledger: the disk is full", "free space in state_dir")
BUG = ValueError(CANARY.decode())


def failing(error: BaseException) -> Callable[..., None]:
    def command(**_: Any) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UNUSABLE, 2, "syncd: /c.yaml: a: is wrong; fix it [config-invalid]"),
        (FULL, 1, "syncd: cannot use the ledger: the disk is full; free space in state_dir"),
        (ExceptionGroup("", [ExceptionGroup("", [UNUSABLE])]), 2, "syncd: /c.yaml: a: is wrong"),
        (ExceptionGroup("", [FULL]), 1, "syncd: cannot use the ledger: the disk is full"),
        (BUG, 1, "syncd: internal error: ValueError at test_main.py:"),
        (ExceptionGroup("", [FULL, BUG]), 1, "syncd: internal error: ExceptionGroup at "),
    ],
)
def test_what_went_wrong_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Errors say where and what to do; a bug is named by class and place, never by its text."""
    monkeypatch.setattr(cli, "cli", failing(error))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, said = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert said.startswith(line)
    assert len(said.splitlines()) == 1
    assert CANARY.decode() not in said


def test_an_interruption_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C among other errors is no bug."""
    interrupted = BaseExceptionGroup("", [KeyboardInterrupt(), FULL])
    monkeypatch.setattr(cli, "cli", failing(interrupted))
    with pytest.raises(BaseExceptionGroup):
        cli.main()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_help_cuts_no_summary_off(width: int) -> None:
    """The list of commands shows each summary whole, on as many lines as it takes."""
    shown = CliRunner(env={"COLUMNS": str(width)}).invoke(cli.cli, ["--help"]).output
    words = " ".join(shown.split())
    assert "..." not in words.partition("Commands:")[2]
    assert "Watches the secret files of Aidbox and reports each change to its consumers." in words
    for command in cli.cli.commands.values():
        assert command.help is not None
        summary = command.help.partition("\n\n")[0]
        assert " ".join(summary.split()).removesuffix(".") in words


def test_the_projects_description_is_that_of_the_command() -> None:
    """The package, the command and the README say the same of what syncd is."""
    claim = "watches the secret files of Aidbox and reports each change to its consumers"
    assert claim in (cli.cli.help or "").replace("Watches", "watches")
    assert claim in tomllib.loads(document("pyproject.toml"))["project"]["description"]
    assert claim in " ".join(document("README.md").split())


@pytest.mark.parametrize("url", ["ftp://x", "http://u:p@x", "http://x?a"])
def test_a_url_of_the_command_line_that_cannot_be_used(url: str) -> None:
    """The remedy names options, not keys of a configuration."""
    done = CliRunner().invoke(cli.cli, ["check", "--aidbox", url])
    assert done.exit_code == 2
    assert " client_id" not in done.output
