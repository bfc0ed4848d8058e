"""What a provider returns: a complete set of files, and when to fetch the next.

These types carry secret values from a vault to the target. They show paths and modes, never
contents, and nothing keeps them once they are written.

Source of the rules about paths: the Secrets Store CSI driver's `pkg/fileutil`, a port of the
kubelet's AtomicWriter.
"""

from __future__ import annotations

import base64
import binascii
import json

import msgspec

DEFAULT_MODE = 0o644
"""Permission bits of a file whose object names none (Secrets Store CSI driver and providers)."""

ENCODINGS = ("utf-8", "base64", "hex")
"""Encodings of a vault's value that `decode_value` accepts."""

LONGEST_PATH = 4096
"""Bytes in a file's whole path (kubelet's AtomicWriter, `maxPathLength`)."""
LONGEST_NAME = 255
"""Bytes in one element of a path (kubelet's AtomicWriter, `maxFileNameLength`)."""


class File(msgspec.Struct, frozen=True):
    """One file of a generation.

    Attributes:
        path: Relative to the target; `path_problem` has its rules.
        content: The secret. Never shown by `repr`.
        mode: Permission bits, at most 0777.
        volatile: Top-level JSON keys that differ on every read without meaning a change, such as
            Vault's `request_id`: written, but left out of the comparison.
    """

    path: str
    content: bytes
    mode: int = DEFAULT_MODE
    volatile: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"File({self.path!r})"

    def same_content(self, other: bytes) -> bool:
        """Whether a content equals this file's but for its volatile keys."""
        if self.content == other:
            return True
        if not self.volatile:
            return False
        try:
            ours, theirs = json.loads(self.content), json.loads(other)
        except (ValueError, RecursionError):
            return False
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            return False
        for key in self.volatile:
            ours.pop(key, None)
            theirs.pop(key, None)
        return bool(ours == theirs)


class Payload(msgspec.Struct, frozen=True):
    """The complete content of a target.

    Attributes:
        files: All files; others are removed.
        due: Seconds after which a lease, token or certificate needs the next fetch, where that may
            be sooner than the poll interval; else None.
    """

    files: tuple[File, ...]
    due: float | None = None


def decode_value(content: bytes, encoding: str) -> bytes:
    """The content of a file from a vault's value; `utf-8` leaves the value as it is.

    Raises:
        ValueError: The value does not have this encoding.
    """
    if encoding == "base64":
        # as Go's base64.StdEncoding, which the upstream providers use: it skips only line ends
        return base64.b64decode(content.translate(None, b"\r\n"), validate=True)
    return binascii.unhexlify(content) if encoding == "hex" else content


def path_problem(path: str) -> str | None:
    """The problem of a file's path inside the target, as the end of a sentence, or None.

    The rules are the AtomicWriter's (`validatePath`: not empty, relative, at most 4096 bytes, each
    element at most 255, no `..`, not starting with `..`, clean), and beyond them: not `.`, and
    only characters that fit in a line of a log and in a path of the kernel.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    elements = path.split("/")
    rules = (
        (not path, "is empty"),
        (not path.isprintable(), "has a character that cannot be printed"),
        (path.startswith("/"), "is not relative to the target"),
        (len(encoded) > LONGEST_PATH, f"is longer than {LONGEST_PATH} bytes"),
        (
            any(len(element.encode()) > LONGEST_NAME for element in elements),
            f"has an element longer than {LONGEST_NAME} bytes",
        ),
        (".." in elements, "leaves the target by .."),
        (path.startswith(".."), "starts with .., which is reserved for the mount's own entries"),
        (path == ".", "is the target itself"),
        (
            "" in elements or "." in elements,
            "is not clean: it has an empty element, a . or a slash at its end",
        ),
    )
    return next((problem for broken, problem in rules if broken), None)
