"""The fleet, as the documents of its installations in a bucket tell: read, and kept up to date.

A document that is none, or that was written under the key of another installation, is reported, and
the installation that the key names counts as unreadable: where the server's permissions allow each
installation its own key only, none can speak for another.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from syncd.core.fleet import Fleet
from syncd.core.installation import UNUSABLE, bucket_subject, instance_of, read_document
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
        scoped: Whether to read the scopes of secrets, too.

    Attributes:
        fleet: The installations, as far as they were read.
        life: Identifies the bucket: one that was deleted and made again has another; None before
            anything was read.
    """

    def __init__(self, server: NatsServer, bucket: str, name: str, *, scoped: bool = False) -> None:
        self.fleet = Fleet(scoped=scoped)
        self.life: str | None = None
        self._bucket = bucket
        self._reader = BucketReader(server, bucket, name)
        self._seen: set[str] = set()
        self._is_new = False
        self._complete = False

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._reader.aclose()

    async def changes(self) -> AsyncGenerator[set[str]]:
        """Yields, again and again, the secrets for which something may have changed.

        The first time is when everything has been read; afterwards at least every few seconds,
        also without a change. A new call begins anew, and what is no longer in the bucket is
        dropped from the fleet; not where the bucket itself is a new one, which has lost
        installations that are still there.

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
            self._is_new = self.life not in (None, page.life)
            self.life = page.life
        touched = self._read(page.values)
        if not self._complete:
            self._seen.update(value.subject for value in page.values)
            if page.current:
                self._complete = True
                known = self.fleet.members.keys() | self.fleet.unreadable.keys()
                for gone in set() if self._is_new else known - self._seen:
                    touched |= self.fleet.forget(gone)
                self._seen = set()
        if page.max_age:
            touched |= self.fleet.expire(time.time() - page.max_age)
        return touched

    def _update(self, subject: str, content: bytes, stored_at: float) -> set[str] | None:
        try:
            document = read_document(content)
            if bucket_subject(self._bucket, document.instance) != subject:
                return None
            return self.fleet.update(subject, document, stored_at)
        except UNUSABLE:
            return None

    def _read(self, values: Iterable[Value]) -> set[str]:
        touched: set[str] = set()
        for value in values:
            if value.content is None:
                touched |= self.fleet.forget(value.subject)
                continue
            found = self._update(value.subject, value.content, value.stored_at)
            if found is None:
                if value.subject not in self.fleet.unreadable:
                    problem = "it is not the document of the installation that its key names"
                    log.error("fleet.unusable", key=value.subject, problem=problem)
                found = self.fleet.distrust(value.subject, instance_of(value.subject))
            touched |= found
        return touched
