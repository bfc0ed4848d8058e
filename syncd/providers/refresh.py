"""The refresh loop: every provision entry is fetched, published and fetched again, on its own.

What it promises: a provider that fails, hangs or is denied delays no other one and nothing else,
leaves the files that are there untouched, and is asked again with backoff until it answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from syncd.core.payload import Payload


class Provider(Protocol):
    """A vault's client, as the refresh loop needs it.

    Every method but `close` is called in a worker thread, never two at a time.
    """

    @property
    def name(self) -> str:
        """What status, metrics and log call this provider."""

    def fetch(self) -> Payload:
        """Fetches every file of the target.

        Blocks, with time limits of its own on every request.

        Returns:
            All files: the fetch of a part is a failure.

        Raises:
            TemporaryError: The vault or the way to it is in the way; carries `retry_after` where
                the vault said when to come back.
            RefusedError: The vault said no, or the answer does not fit the manifest: only a
                person can change that.
        """

    def close(self) -> None:
        """Gives up: a fetch under way ends soon, by an error. May be called from any thread."""
