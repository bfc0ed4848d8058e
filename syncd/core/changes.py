"""The comparison: from the inventory and a scan to the changes.

`plan` is the heart of syncd and is pure. Its rules (guarantees 3 and 5 of the delivery contract):

- present: `added` where there was no version, `modified` where there was another one;
- missing: `removed` where there was a version;
- present, with the version that was known under a fingerprint key since replaced: no change; the
  version becomes the one under the new key;
- unreadable: only the state changes; the last version stays;
- unsettled: no version changes; state and problem are the scan's, or the previous ones where the
  scan has no problem to report;
- an entry that left the vault config is `removed` with the scope that it had;
- files outside the vault config (`watch.extra`) are judged alike, and are no change of the vault
  config when they are added, changed or removed.

Applying a plan gives the new inventory; planning again from there with the same observations gives
an empty plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from syncd.core.event_data import VaultConfigData
from syncd.core.model import Change, ChangeKind, Known, Observation, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from syncd.core.model import Entry

_UNSEEN = Observation(State.MISSING, settled=False)
_UNCHANGED = VaultConfigData((), (), (), ())


class Plan(msgspec.Struct, frozen=True):
    """The result of a comparison.

    Attributes:
        changes: Secrets whose content changed, ordered by name.
        vault_config: How the vault config's entries changed; falsy when they did not.
        inventory: The new inventory, by name.
        touched: Names whose row in the inventory is new or differs, sorted.
        dropped: Names that left the inventory, sorted.
        rescoped: Names whose scope changed, in the vault config or outside of it, sorted.
    """

    changes: tuple[Change, ...]
    vault_config: VaultConfigData
    inventory: Mapping[str, Known]
    touched: tuple[str, ...]
    dropped: tuple[str, ...]
    rescoped: tuple[str, ...] = ()


def plan(
    known: Mapping[str, Known],
    entries: Mapping[str, Entry],
    observations: Mapping[str, Observation],
    at: str,
) -> Plan:
    """Compares the inventory with a scan.

    Args:
        known: The inventory so far, by name.
        entries: The vault config's, by name.
        observations: The scan's, by name; a name without one counts as not yet seen.
        at: Time of the scan (RFC 3339, UTC), for `changed_at`.
    """
    changes: list[Change] = []
    inventory: dict[str, Known] = {}
    touched: list[str] = []
    differing: list[str] = []
    for name in sorted(entries):
        before, entry, seen = known.get(name), entries[name], observations.get(name, _UNSEEN)
        if before is not None:
            if entry is not before.entry and entry != before.entry:
                differing.append(name)
            elif (
                seen.settled
                and seen.version == before.version
                and seen.state is before.state
                and seen.problem == before.problem
            ):
                inventory[name] = before  # by far the most frequent case
                continue
        after, change = _judge(before, entry, seen, at)
        inventory[name] = after
        if after is not before:
            touched.append(name)
        if change is not None:
            changes.append(change)
    dropped = tuple(sorted(known.keys() - entries.keys()))
    changes += [
        Change(ChangeKind.REMOVED, gone.entry, None, gone.version)
        for gone in (known[name] for name in dropped)
        if gone.version is not None
    ]
    changes.sort(key=lambda change: change.entry.name)
    return Plan(
        tuple(changes),
        _vault_config(known, entries, differing),
        inventory,
        tuple(touched),
        dropped,
        tuple(n for n in differing if known[n].entry.scopes != entries[n].scopes),
    )


def _judge(
    before: Known | None, entry: Entry, seen: Observation, at: str
) -> tuple[Known, Change | None]:
    last = before.version if before is not None else None
    changed_at = before.changed_at if before is not None else None
    version, change = last, None
    if seen.settled and last is not None and seen.former == last:
        version = seen.version  # the same content under a new key, and no other time of change
    elif seen.settled and seen.state is State.PRESENT and seen.version != last:
        kind = ChangeKind.ADDED if last is None else ChangeKind.MODIFIED
        change = Change(kind, entry, seen.version, last)
        version, changed_at = seen.version, at
    elif seen.settled and seen.state is State.MISSING and last is not None:
        change = Change(ChangeKind.REMOVED, entry, None, last)
        version, changed_at = None, at
    after = Known(entry, seen.state, version, seen.problem, changed_at)
    if before is not None and not seen.settled and seen.problem is None:
        after = msgspec.structs.replace(after, state=before.state, problem=before.problem)
    if change is None and before == after:
        return before, None
    return after, change


def _vault_config(
    known: Mapping[str, Known], entries: Mapping[str, Entry], differing: Sequence[str]
) -> VaultConfigData:
    """How the vault config changed; `differing` are the names whose entry did.

    A file that moves between `watch.extra` and the vault config is added to it, or removed from it.
    """
    if not differing and known.keys() == entries.keys():
        return _UNCHANGED
    joined = {n for n in differing if known[n].entry.extra and not entries[n].extra}
    left = {n for n in differing if entries[n].extra and not known[n].entry.extra}
    stayed = [n for n in differing if not (known[n].entry.extra or entries[n].extra)]
    added = {n for n in entries.keys() - known.keys() if not entries[n].extra}
    removed = {n for n in known.keys() - entries.keys() if not known[n].entry.extra}
    return VaultConfigData(
        added=tuple(sorted(added | joined)),
        removed=tuple(sorted(removed | left)),
        rescoped=tuple(n for n in stayed if known[n].entry.scopes != entries[n].scopes),
        repointed=tuple(n for n in stayed if known[n].entry.path != entries[n].path),
    )
