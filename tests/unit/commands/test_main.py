"""How a command ends: what went wrong is one line and an exit code, whatever it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.world import CANARY

from syncd.commands import main as cli
from syncd.core.errors import ConfigurationError, StateError
from syncd.core.findings import finding

if TYPE_CHECKING:
    from collections.abc import Callable

UNUSABLE = ConfigurationError([finding("config-invalid", "/c.yaml", "a", "is wrong", "mend it")])
FULL = StateError("cannot use the ledger: the disk is full; free or mend state_dir")
BUG = ValueError(CANARY.decode())


def failing(error: BaseException) -> Callable[..., None]:
    def command(**_: Any) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UNUSABLE, 2, "syncd: /c.yaml: a: is wrong; mend it [config-invalid]"),
        (FULL, 1, "syncd: cannot use the ledger: the disk is full; free or mend state_dir"),
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
