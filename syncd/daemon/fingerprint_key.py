"""The key that installations share (`fingerprint_key_file`): read at the start and as it rotates.

Where the file cannot be read, versions are made with the key that was in use before, so that no
rotation of a secret waits for the key. A new key is never a change: `syncd.core.changes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import structlog

from syncd.core.errors import SyncdError, TemporaryError
from syncd.net.rotation import Signature, is_settled, signature, stat_file, unreadable
from syncd.system.files import UnsuitableError, read_file
from syncd.system.threads import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from syncd.daemon.resources import Resources

SHORTEST: Final = 16
"""Bytes that a key has at least."""

INTERVAL: Final = 5.0
"""Seconds between two looks at the file."""

_OPTION: Final = "fingerprint_key_file"
_LONGEST: Final = 64 << 10
_LIMIT: Final = 4.0
log = structlog.get_logger()


class FingerprintKeyFile:
    """Keeps the state directory's key in step with the file.

    Args:
        path: The file; None for a key of this installation alone.
        resources: The state directory and the ledger.
        changed: Called in the event loop when there is another key.
    """

    def __init__(self, path: str | None, resources: Resources, changed: Callable[[], None]) -> None:
        self._path = path
        self._resources = resources
        self._changed = changed
        self._signature: Signature | None = None
        self._problem: str | None = None
        self._call: Call[None] | None = None
        self._in_use = resources.state.keys.key_id
        self._is_recorded = True

    async def check(self) -> None:
        """Looks at the file once, and takes over a new key; waits 4 s for its file system."""
        if self._call is None:
            self._call = Call(self._take_over)
        if not await self._call.wait(_LIMIT):
            hint = "check the mount; the key before stays in use"
            self._fail(TemporaryError(f"cannot read {_OPTION} {self._path}: no answer", hint))
            return
        call, self._call = self._call, None
        try:
            call.result()
        except SyncdError as error:
            self._signature = None
            self._fail(error)
        else:
            if self._problem is not None:
                self._problem = None
                log.info("fingerprint_key.recovered", path=self._path)
        # also where the ledger could not record it: the state directory has the key, and reports
        # name it
        key_id = self._resources.state.keys.key_id
        if key_id != self._in_use:
            self._in_use = key_id
            log.info("fingerprint_key.changed", key_id=key_id)
            self._changed()

    async def run(self) -> None:
        """Looks at the file again and again until cancelled."""
        while self._path is not None:
            await anyio.sleep(INTERVAL)
            await self.check()

    def _fail(self, error: SyncdError) -> None:
        if self._problem != str(error):
            self._problem = str(error)
            log.error("fingerprint_key.unusable", problem=str(error))

    def _take_over(self) -> None:
        state, ledger = self._resources.state, self._resources.ledger
        shared = status = None
        if self._path is not None:
            status = stat_file(_OPTION, self._path)
            if signature(status) == self._signature:
                return
            shared = read_key(self._path)
        if state.use_key(shared):
            self._is_recorded = False
        if not self._is_recorded:
            ledger.use_key(state.keys.key_id)
            self._is_recorded = True
        if status is not None and is_settled(status):
            self._signature = signature(status)


def read_key(path: str) -> bytes:
    """Reads the key that installations share; one line end at its end is not part of it. Blocks.

    Raises:
        TemporaryError: The file is missing, cannot be read, or is too short.
    """
    try:
        content, _ = read_file(path, _LONGEST)
    except UnsuitableError as error:
        problem = f"cannot use {_OPTION} {path}: {error.strerror}"
        raise TemporaryError(problem, "name a file that holds the key alone") from None
    except OSError as error:
        raise unreadable(_OPTION, path, error) from None
    key = content.removesuffix(b"\n")
    if len(key) < SHORTEST:
        problem = f"cannot use {_OPTION} {path}: it has fewer than {SHORTEST} bytes"
        raise TemporaryError(problem, "write a random key, such as `openssl rand -hex 32` makes")
    return key
