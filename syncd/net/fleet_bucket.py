"""The fleet, as the documents of its installations in a bucket tell: read, and kept up to date.

A document that is none, or that was written under the key of another installation, is left out and
reported: where the server's permissions allow each installation its own key only, none can speak
for another.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from syncd.core.fleet import Fleet
from syncd.core.installation import bucket_subject, decode_installation
from syncd.net.nats_bucket import BucketReader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from syncd.config.settings import NatsServer
    from syncd.net.nats_bucket import Page, Value

log = structlog.get_logger()


class FleetBucket:
    """Reads all documents, and then every change.

    Args:
        server: Addresses and login.
        bucket: Name of the bucket.
        name: The client's name in the server's monitoring.

    Attributes:
        fleet: The installations, as far as they were read.
        unusable: Keys of documents that were left out.
    """

    def __init__(self, server: NatsServer, bucket: str, name: str) -> None:
        self.fleet = Fleet()
        self.unusable: set[str] = set()
        self._bucket = bucket
        self._reader = BucketReader(server, bucket, name)
        self._seen: set[str] = set()
        self._complete = False

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._reader.aclose()

    async def changes(self) -> AsyncGenerator[set[str]]:
        """Yields, again and again, the secrets for which something may have changed.

        The first time is when everything has been read; afterwards at least every few seconds,
        also without a change. A new call begins anew, and what is no longer in the bucket is
        dropped from the fleet.

        Raises:
            TemporaryError: The bucket does not exist, or the server cannot be reached.
            RefusedError: The login or a permission is missing.
        """
        touched: set[str] = set()
        self._complete = False
        async for page in self._reader.pages():
            touched |= self._take(page)
            if page.current:
                yield touched
                touched = set()

    def _take(self, page: Page) -> set[str]:
        if page.first:
            self._seen = set()
        touched = self._read(page.values)
        if not self._complete:
            self._seen.update(value.subject for value in page.values)
            if page.current:
                self._complete = True
                for gone in self.fleet.members.keys() - self._seen:
                    touched |= self.fleet.forget(gone)
                self._seen = set()
        if page.max_age:
            touched |= self.fleet.expire(time.time() - page.max_age)
        return touched

    def _update(self, subject: str, content: bytes, stored_at: float) -> set[str] | None:
        try:
            document = decode_installation(content)
            if bucket_subject(self._bucket, document.instance) != subject:
                return None
            return self.fleet.update(subject, document, stored_at)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            return None

    def _read(self, values: Iterable[Value]) -> set[str]:
        touched: set[str] = set()
        for value in values:
            if value.content is None:
                touched |= self.fleet.forget(value.subject)
                continue
            found = self._update(value.subject, value.content, value.stored_at)
            if found is not None:
                self.unusable.discard(value.subject)
                touched |= found
                continue
            touched |= self.fleet.forget(value.subject)
            if value.subject not in self.unusable:
                self.unusable.add(value.subject)
                problem = "it is not the document of the installation that its key names"
                log.error("fleet.unusable", key=value.subject, problem=problem)
        return touched
