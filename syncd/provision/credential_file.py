"""The files that `auth` names: read at every login, because credentials rotate too."""

from __future__ import annotations

from syncd.core.errors import RefusedError, TemporaryError
from syncd.system.errnos import is_of_machine, reason, remedy
from syncd.system.files import read_file

LARGEST = 64 << 10
"""Bytes; tokens, ids, passwords and certificates are far smaller."""


def read_credential(option: str, path: str) -> str:
    """Reads a token, id or password, without the white space around it.

    Blocks: for worker threads.

    Args:
        option: The key of `auth` that names the file, for messages.
        path: The file.

    Raises:
        TemporaryError: The machine or the file system fails.
        RefusedError: The file cannot be read, is empty, or holds more than one word of visible
            ASCII characters, which no header can carry.
    """
    text = read_bytes(option, path).decode("ascii", "replace").strip()
    if not text:
        raise RefusedError(
            f"cannot use auth.{option} {path}: the file is empty", "write the credential into it"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise RefusedError(
            f"cannot use auth.{option} {path}: it is not one word of visible ASCII characters",
            "write the credential into it and nothing else",
        )
    return text


def read_bytes(option: str, path: str) -> bytes:
    """Reads a credential of any kind as it is; arguments and blocking as for `read_credential`.

    Raises:
        RefusedError: The file does not exist, may not be read or is too large.
        TemporaryError: The machine or the file system fails.
    """
    try:
        return read_file(path, LARGEST)[0]
    except OSError as error:
        problem = f"cannot read auth.{option} {path}: {reason(error)}"
        correction = f"set {option} to the file that holds the credential"
        what_to_do = remedy(error, path=correction, access="let syncd's user read it")
        if is_of_machine(error):
            raise TemporaryError(problem, what_to_do) from None
        raise RefusedError(problem, what_to_do) from None
