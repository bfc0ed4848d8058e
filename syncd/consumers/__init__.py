"""From the ledger to consumers: delivery, and the kinds of consumers."""
