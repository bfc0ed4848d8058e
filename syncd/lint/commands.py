"""`syncd check`: the programs of consumers of kind `exec`, as syncd's user will run them."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from syncd.config.settings import COMMAND_PATH, Exec
from syncd.core.findings import finding, key_path
from syncd.mount.read import LIMIT
from syncd.system import errnos
from syncd.system.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from syncd.config.settings import RelaySettings, Settings
    from syncd.core.findings import Finding

    _Problem = tuple[str, str, str]

_CORRECT = "correct the path, or install the program"


def check_commands(settings: Settings | RelaySettings, source: str) -> list[Finding]:
    """Programs that are not there, cannot be executed, or can be replaced by every user.

    Blocks, for a limited time.
    """
    programs = {
        key_path("consumers", index, "command", 0): consumer.command[0]
        for index, consumer in enumerate(settings.consumers)
        if isinstance(consumer, Exec)
    }
    calls = {where: partial(_examine, program) for where, program in programs.items()}
    examined = gather(calls, LIMIT)
    silent = "cannot be examined: its file system does not answer"
    return [
        finding(code, source, where, f"{program} {message}", hint)
        for where, program in programs.items()
        for code, message, hint in examined.get(
            where, [("command-unusable", silent, "check the mount that the program lies on")]
        )
    ]


def _examine(program: str) -> list[_Problem]:
    path = program if "/" in program else _find(program)
    if path is None:
        return [("command-unusable", f"is not in {COMMAND_PATH}", "write its absolute path")]
    try:
        real = os.path.realpath(path, strict=True)
        mode = os.stat(real).st_mode
    except FileNotFoundError:
        return [("command-unusable", "does not exist", _CORRECT)]
    except OSError as error:
        hint = errnos.remedy(error, path=_CORRECT, access="let syncd's user enter its directory")
        return [("command-unusable", f"cannot be examined: {errnos.reason(error)}", hint)]
    if not stat.S_ISREG(mode):
        return [("command-unusable", "is not a file", _CORRECT)]
    found: list[_Problem] = []
    if not os.access(real, os.X_OK, effective_ids=True):
        hint = "let it execute the file (chmod +x), on a mount without noexec"
        found.append(("command-unusable", "cannot be executed by this user", hint))
    return [*found, *_replaceable(real, mode)]


def _find(name: str) -> str | None:
    """The first file of this name that can be executed, as execvp(3) finds it."""
    paths = (f"{directory}/{name}" for directory in COMMAND_PATH.split(":"))
    return next((path for path in paths if os.access(path, os.X_OK, effective_ids=True)), None)


def _replaceable(real: str, mode: int) -> Iterator[_Problem]:
    """Whether every user can change what syncd's user executes."""
    if mode & stat.S_IWOTH:
        message = "can be changed by every user of this machine, who would run it as syncd's user"
        yield "command-exposed", message, "remove the permission with chmod o-w"
    directory = os.path.dirname(real)
    while directory != "/":
        status = os.stat(directory)
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            message = f"can be replaced by every user of this machine, who may write to {directory}"
            yield "command-exposed", message, f"chmod o-w {directory}, or move the program"
        directory = os.path.dirname(directory)
