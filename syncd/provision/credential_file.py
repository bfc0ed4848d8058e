"""Files that hold a credential: read when it is used, because credentials rotate too."""

from __future__ import annotations

from syncd.core.errors import RefusedError

LONGEST = 1 << 16
"""Bytes; tokens, ids and passwords are far shorter."""


def read_credential(path: str) -> str:
    """Reads a credential, without the white space around it.

    Blocks: for worker threads.

    Raises:
        RefusedError: The file cannot be read, or what it holds cannot be a credential: nothing,
            several words, or bytes that a header cannot carry.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise RefusedError(
            f"cannot read the credential in {path}: {error.strerror};"
            " make it readable for this user"
        ) from None
    text = content.decode("ascii", "replace").strip()
    if not text:
        raise RefusedError(f"cannot use the credential in {path}: it is empty; write it there")
    if len(content) > LONGEST or not text.isprintable() or " " in text or not text.isascii():
        raise RefusedError(
            f"cannot use the credential in {path}: it is not one word of plain ASCII;"
            " leave nothing else there"
        )
    return text
