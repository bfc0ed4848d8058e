"""The linter's rules about resources, vault config and a running Aidbox."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from syncd.consumers.aidbox.references import DESTINATION, Reference, references_in, stored_secrets
from syncd.core.decode import did_you_mean
from syncd.core.findings import finding, json_path
from syncd.core.model import Scope
from syncd.core.timing import rfc3339
from syncd.lint.aidbox.rotations import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from syncd.consumers.aidbox.resources import Resource, Sender
    from syncd.core.findings import Finding
    from syncd.core.model import Entry
    from syncd.lint.aidbox.rotations import Evidence

_CLOCK_ERROR: Final = 2.0
_NAME: Final = 128
SECRETS_SINCE: Final = 2602
"""The release that introduced external secrets; 2605 is the first LTS release with them."""
RACE_UNTIL: Final = 2603
"""The release that no longer loses a destination's sender on other replicas."""
PUT_SINCE: Final = 2608
"""The release from which a webhook destination takes a PUT, of its `endpoint` alone."""
_BEST_EFFORT: Final = "best-effort"


@dataclass(frozen=True, slots=True)
class Live:
    """What was read of a running Aidbox.

    Attributes:
        url: Its base URL.
        resources: By type; without the types that could not be read.
        senders: The senders of each destination that refers to a secret, by id.
        started: When each replica started, seconds since the epoch, by address.
        releases: The release of each replica, such as 2605, by address, where it is known.
    """

    url: str
    resources: Mapping[str, tuple[Resource, ...]]
    senders: Mapping[str, Sequence[Sender]] = field(default_factory=dict)
    started: Mapping[str, float] = field(default_factory=dict)
    releases: Mapping[str, int] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[Scope, Resource]]:
        """Every resource, with its type and id."""
        for type_, resources in self.resources.items():
            for resource in resources:
                yield Scope(type_, str(resource.get("id", ""))), resource

    def find(self, of: Scope) -> Resource:
        """The resource with a type and id; it must be among those that were read."""
        return next(resource for scope, resource in self.each() if scope == of)

    def place(self, of: Scope) -> str:
        """URL of a resource."""
        return f"{self.url}/fhir/{of.resource_type}/{of.id}"


def check_live(
    live: Live,
    entries: Mapping[str, Entry],
    vault_config: str,
    *,
    vault_config_evidence: Evidence,
    rotated: Mapping[str, Evidence],
) -> list[Finding]:
    """Applies every rule.

    Args:
        live: What was read of Aidbox.
        entries: The vault config's, by name.
        vault_config: Path of the vault config.
        vault_config_evidence: When it changed.
        rotated: When each secret changed, by name.
    """
    found = [reference for of, resource in live.each() for reference in references_in(resource, of)]
    return [
        *_names(live, found, entries),
        *_unreferenced(live, found, entries, vault_config),
        *_destinations(live, found, rotated),
        *_stored(live),
        *_releases(live),
        *_restart(live, vault_config, vault_config_evidence),
    ]


def _names(live: Live, found: list[Reference], entries: Mapping[str, Entry]) -> Iterator[Finding]:
    for reference in found:
        place, where = live.place(reference.resource), json_path(*reference.where)
        entry, name = entries.get(reference.name), _quoted(reference.name)
        if entry is None:
            message = f"refers to {name}, which is not in the vault config"
            hint = f"add it there and restart Aidbox{_other_names(reference, entries)}"
            yield finding("reference-unknown", place, where, message, hint)
        elif entry.scopes and not any(s.covers(reference.resource) for s in entry.scopes):
            allowed = ", ".join(map(str, entry.scopes))
            message = f"refers to {name}, which is for {allowed} only"
            hint = f"add an entry with another name and the scope {reference.resource}"
            yield finding("reference-out-of-scope", place, where, message, hint)


def _quoted(name: str) -> str:
    """A name from Aidbox, unless it may be a value that was written in place of a name."""
    return f"the secret {name}" if name.isprintable() and len(name) <= _NAME else "a secret"


def _other_names(reference: Reference, entries: Mapping[str, Entry]) -> str:
    fitting = [n for n, e in entries.items() if any(s.covers(reference.resource) for s in e.scopes)]
    if not fitting:
        return f": the vault config has no entry for {reference.resource}"
    return f", or correct the name: {did_you_mean(reference.name, fitting)}"


def _unreferenced(
    live: Live, found: list[Reference], entries: Mapping[str, Entry], vault_config: str
) -> Iterator[Finding]:
    used = {reference.name for reference in found}
    for name, entry in entries.items():
        types = {scope.resource_type for scope in entry.scopes}
        if name in used or not types or not types <= live.resources.keys():
            continue  # not all resources that could refer to it were read
        message = "is not used by any resource of Aidbox"
        hint = (
            "refer to it from a resource; or remove the entry, and list the file in watch.extra if "
            "Aidbox uses it otherwise"
        )
        yield finding("entry-unreferenced", vault_config, json_path("secret", name), message, hint)


def _destinations(
    live: Live, found: list[Reference], rotated: Mapping[str, Evidence]
) -> Iterator[Finding]:
    """Judges the sender of each destination at each replica."""
    for reference in found:
        if reference.resource.resource_type != DESTINATION:
            continue
        senders = live.senders.get(reference.resource.id or "", ())
        queued = [sender.queued for sender in senders]
        waiting = None if None in queued else sum(filter(None, queued))
        evidence = rotated.get(reference.name)
        unknown = []
        for sender in senders:
            if not sender.is_alive:
                yield _dead(live, reference, sender)
            elif sender.started is not None and evidence is not None:
                verdict = evidence.judge(sender.started)
                if verdict is Verdict.OLD:
                    yield _stale(live, reference, sender, evidence, waiting)
                elif verdict is Verdict.UNKNOWN:
                    unknown.append((sender.started, sender.replica))
        if unknown and evidence is not None:
            yield _undecided(live, reference, unknown, evidence)


def _dead(live: Live, reference: Reference, sender: Sender) -> Finding:
    message = (
        f"has no sender at the replica {sender.replica}, which delivers nothing for it; it uses "
        f"{_quoted(reference.name)}"
    )
    hint = (
        "check that this replica can read the file of the secret and reach the destination, then "
        f"restart this replica; its log says why the sender failed{_race(live, sender.replica)}"
    )
    return _of(live, reference, "destination-dead", message, hint)


def _race(live: Live, replica: str) -> str:
    release = live.releases.get(replica)
    if release is None or release >= RACE_UNTIL:
        return ""
    return f", and release {release} can lose one: upgrade to {RACE_UNTIL} or later"


def _stale(
    live: Live, reference: Reference, sender: Sender, evidence: Evidence, waiting: int | None
) -> Finding:
    assert sender.started is not None
    assert evidence.changed is not None
    message = (
        f"uses an old value of {_quoted(reference.name)} at the replica {sender.replica}: its "
        f"sender started at {rfc3339(sender.started)}, before the rotation at "
        f"{rfc3339(evidence.changed)}"
    )
    resource = live.find(reference.resource)
    kept = (
        "messages that it has in memory are lost"
        if _BEST_EFFORT in str(resource.get("kind", ""))
        else "nothing is lost, because its queue is in PostgreSQL"
    )
    release = live.releases.get(sender.replica)
    put = (
        f"a PUT can change only the endpoint of a webhook (since {PUT_SINCE})"
        if release is not None and release >= PUT_SINCE
        else "a PUT returns 405"
    )
    queued = "unknown" if waiting is None else waiting
    hint = (
        f"restart this replica ({kept}); or wait until no replica has messages in its queue, then "
        f"DELETE it and POST it again, which loses queued ones (messagesQueued is {queued}; {put})"
    )
    return _of(live, reference, "destination-stale", message, hint)


def _undecided(
    live: Live, reference: Reference, senders: Sequence[tuple[float, str]], evidence: Evidence
) -> Finding:
    started, _ = min(senders)
    replicas = ", ".join(replica for _, replica in senders)
    message = (
        f"may use an old value of {_quoted(reference.name)}: whether that was rotated is unknown "
        f"since {rfc3339(started)}, when the sender started (at {replicas})"
    )
    return _of(live, reference, "destination-unknown", message, _unwatched(evidence))


def _unwatched(evidence: Evidence) -> str:
    if evidence.since == math.inf:
        return "run this check with the state_dir of the daemon that watches these files"
    if evidence.after is not None and evidence.changed is not None:
        return (
            f"it changed between {rfc3339(evidence.after)} and {rfc3339(evidence.changed)}, while "
            "the daemon did not run; a restart of the replica settles it"
        )
    return (
        f"the daemon has watched since {rfc3339(evidence.since)} only; a restart of the replica "
        "settles it"
    )


def _of(live: Live, reference: Reference, code: str, message: str, hint: str) -> Finding:
    place, where = live.place(reference.resource), json_path(*reference.where)
    return finding(code, place, where, message, hint)


def _stored(live: Live) -> Iterator[Finding]:
    for of, resource in live.each():
        for where in stored_secrets(resource, of.resource_type):
            message = "holds a secret in Aidbox's database"
            hint = "write it to a file, add an entry to the vault config, and refer to the entry"
            place = live.place(of)
            yield finding("secret-stored", place, json_path(*where), message, hint)


def _releases(live: Live) -> Iterator[Finding]:
    for replica, release in live.releases.items():
        if release < SECRETS_SINCE:
            message = f"is release {release}, which has no external secrets"
            hint = f"upgrade to {SECRETS_SINCE} or later; the first LTS release with them is 2605"
            yield finding("aidbox-too-old", replica, "", message, hint)
        elif release < RACE_UNTIL:
            message = f"is release {release}, which can lose a destination's sender on a replica"
            hint = f"upgrade to {RACE_UNTIL} or later; the next LTS release is 2605"
            yield finding("aidbox-sender-race", replica, "", message, hint)


def _restart(live: Live, vault_config: str, evidence: Evidence) -> Iterator[Finding]:
    for replica, started in live.started.items():
        verdict = evidence.judge(started + _CLOCK_ERROR)
        running = f"has been running since {rfc3339(started)}"
        if verdict is Verdict.OLD:
            assert evidence.changed is not None
            message = f"{running}, but {vault_config} changed at {rfc3339(evidence.changed)}"
            hint = "restart this replica: it loads the vault config only when it starts"
            yield finding("aidbox-restart-needed", replica, "", message, hint)
        elif verdict is Verdict.UNKNOWN:
            message = f"{running}, and whether {vault_config} changed since then is unknown"
            yield finding("aidbox-restart-unknown", replica, "", message, _unwatched(evidence))
