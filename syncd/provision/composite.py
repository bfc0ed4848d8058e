"""Several SecretProviderClasses in one manifest: one target, one generation, all or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syncd.core.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.provision.refresh import Provider


class CompositeProvider:
    """Fetches the files of one target from several providers."""

    def __init__(self, name: str, providers: Sequence[Provider]) -> None:
        self.name = name
        self._providers = tuple(providers)

    def fetch(self) -> Payload:
        """Fetches all their files; see `syncd.provision.refresh.Provider`."""
        payloads = [provider.fetch() for provider in self._providers]
        files = tuple(file for payload in payloads for file in payload.files)
        dues = [payload.due for payload in payloads if payload.due is not None]
        return Payload(files, min(dues, default=None))

    def interrupt(self) -> None:
        """Interrupts all of them."""
        for provider in self._providers:
            provider.interrupt()

    def resume(self) -> None:
        """Resumes all of them."""
        for provider in self._providers:
            provider.resume()

    def close(self) -> None:
        """Closes all of them."""
        for provider in self._providers:
            provider.close()
