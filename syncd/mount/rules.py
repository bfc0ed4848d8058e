"""The parameters of every scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec


class Rules(msgspec.Struct, frozen=True):
    """The parameters of every scan.

    Attributes:
        boundary: Directories that files must lie in after resolving symlinks; empty for none.
        targets: Without a boundary, the directories that a symlink may lead to.
        max_size: Largest secret, bytes.
        settle: Seconds between two identical observations of a plain file before it is read.
        grace: Seconds until the secrets of a mount that is away count as removed.
        fingerprint: Returns the version for a secret's name and content.
        former: Returns its versions under keys that were replaced; None where none was.
        see: Called with each content that is taken, its secret's name and its version; None for
            nobody.
        refuses: Whether an open file must not be read, however it was reached; None for no file.
        strict: Whether files outside the vault config must lie in the boundary, too.
    """

    boundary: tuple[str, ...]
    targets: tuple[str, ...]
    max_size: int
    settle: float
    grace: float
    fingerprint: Callable[[str, bytes], str]
    former: Callable[[str, bytes], Iterable[str]] | None = None
    see: Callable[[str, str, bytes], object] | None = None
    refuses: Callable[[int], bool] | None = None
    strict: bool = False
