"""From the ledger to consumers: delivery, and the kinds of consumers."""

import syncd.net  # noqa: F401 - loads httpx2 leanly, before any module of this package does
