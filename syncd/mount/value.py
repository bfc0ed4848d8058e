"""The value of one secret, for the moment in which somebody must prove that it is accepted.

It is handed out only while the file holds exactly the version that was announced, so whatever is
done with it is done with that version. It is read as safely as a scan reads: the file must lie
beneath a root after resolving symlinks, be a regular file, and not too large.
"""

from __future__ import annotations

import errno
import os
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING

from syncd.mount import beneath
from syncd.mount.roots import contains

if TYPE_CHECKING:
    from collections.abc import Iterable


def fingerprint(key: bytes, name: str, content: bytes) -> str:
    """The version of a secret's content: a keyed hash, bound to the secret's name."""
    digest = blake2b(name.encode() + b"\0", key=key, digest_size=16)
    digest.update(content)
    return "k1:" + digest.hexdigest()


def read_value(
    key: bytes, roots: Iterable[str], max_size: int, *, name: str, path: str, version: str
) -> bytes | None:
    """Reads a secret. Blocks.

    Args:
        key: Key of the fingerprints.
        roots: Directories that the file must lie in, after resolving symlinks.
        max_size: Largest secret, bytes.
        name: The secret's name.
        path: Its file.
        version: What the content must be.

    Returns:
        The content, or None where it cannot be read or is another version by now.
    """
    try:
        real = os.path.realpath(path)
        base = next(
            (b for b in map(os.path.realpath, roots) if real != b and contains(b, real)), None
        )
        if base is None:
            raise OSError(errno.EXDEV, "outside")  # noqa: TRY301 - as the kernel says it
        content = _read(base, os.path.relpath(real, base), max_size)
    except OSError:
        return None
    return content if fingerprint(key, name, content) == version else None


def _read(base: str, relative: str, max_size: int) -> bytes:
    directory = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(beneath.open_file(directory, relative), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > max_size:
                raise OSError(errno.EINVAL, "not a secret")
            return file.read(max_size)
    finally:
        os.close(directory)
