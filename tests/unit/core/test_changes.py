"""syncd.core.changes: from what was known and seen to what has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace

from syncd.core.changes import Plan, plan
from syncd.core.event_data import VaultConfigData
from syncd.core.model import Change, ChangeKind, Entry, Known, Observation, Scope, State

if TYPE_CHECKING:
    from collections.abc import Mapping

THEN, NOW = "2026-11-23T20:00:00.000Z", "2026-11-23T21:00:00.000Z"
ENTRY = Entry("a", "/s/a", (Scope("Client"),))
KNOWN = Known(ENTRY, State.PRESENT, "k1:1", None, THEN)


def judge(known: Known | None, seen: Observation | None, entry: Entry = ENTRY) -> Plan:
    """A plan about the single secret `a`."""
    return plan({"a": known} if known else {}, {"a": entry}, {"a": seen} if seen else {}, NOW)


class TestOneSecret:
    def test_seen_for_the_first_time_is_added(self) -> None:
        """Present without a version before is `added`, as of the scan's time."""
        result = judge(None, Observation(State.PRESENT, "k1:1"))
        assert result.changes == (Change(ChangeKind.ADDED, ENTRY, "k1:1", None),)
        assert result.inventory == {"a": replace(KNOWN, changed_at=NOW)}

    def test_with_another_version_is_modified(self) -> None:
        """Present with another version is `modified`, from the last version seen."""
        result = judge(KNOWN, Observation(State.PRESENT, "k1:2"))
        assert result.changes == (Change(ChangeKind.MODIFIED, ENTRY, "k1:2", "k1:1"),)
        assert result.inventory["a"].changed_at == NOW

    def test_with_the_same_version_is_nothing(self) -> None:
        """The same content is no change and touches no row."""
        result = judge(KNOWN, Observation(State.PRESENT, "k1:1"))
        assert (result.changes, result.touched, result.dropped) == ((), (), ())
        assert not result.vault_config
        assert result.inventory["a"] is KNOWN

    def test_that_is_missing_is_removed_once(self) -> None:
        """Missing after a version is `removed`; missing again is nothing."""
        gone = Observation(State.MISSING, None, "there is no file")
        result = judge(KNOWN, gone)
        assert result.changes == (Change(ChangeKind.REMOVED, ENTRY, None, "k1:1"),)
        again = plan(result.inventory, {"a": ENTRY}, {"a": gone}, NOW)
        assert (again.changes, again.touched) == ((), ())

    def test_that_never_was_there_is_no_change(self) -> None:
        """Missing from the start is known as missing and announced to nobody."""
        result = judge(None, Observation(State.MISSING, None, "there is no file"))
        assert result.changes == ()
        assert result.inventory["a"].state is State.MISSING
        assert result.inventory["a"].changed_at is None

    def test_that_cannot_be_read_keeps_its_last_version(self) -> None:
        """Unreadable is a state and a problem, never a change."""
        result = judge(KNOWN, Observation(State.UNREADABLE, None, "is a FIFO"))
        assert result.changes == ()
        expected = replace(KNOWN, state=State.UNREADABLE, problem="is a FIFO")
        assert result.inventory == {"a": expected}
        assert result.touched == ("a",)

    def test_that_comes_back_as_it_was_is_no_change(self) -> None:
        """Readable again with the same content is nothing but a better state."""
        broken = replace(KNOWN, state=State.UNREADABLE, problem="is a FIFO")
        result = judge(broken, Observation(State.PRESENT, "k1:1"))
        assert result.changes == ()
        assert result.inventory == {"a": KNOWN}

    @pytest.mark.parametrize("state", list(State))
    def test_that_is_not_settled_stays_as_it_was(self, state: State) -> None:
        """What the scan cannot tell yet changes nothing at all."""
        version = "k1:9" if state is State.PRESENT else None
        result = judge(KNOWN, Observation(state, version, settled=False))
        assert (result.changes, result.touched) == ((), ())

    def test_that_is_not_settled_may_show_a_problem(self) -> None:
        """A mount that is away is shown as such, and its secrets keep their versions."""
        away = Observation(State.MISSING, None, "the mount is away", settled=False)
        result = judge(KNOWN, away)
        assert result.changes == ()
        expected = replace(KNOWN, state=State.MISSING, problem="the mount is away")
        assert result.inventory == {"a": expected}

    def test_that_was_not_looked_at_stays_as_it_was(self) -> None:
        """No observation is no news; a new entry is then known without a version."""
        assert judge(KNOWN, None).inventory["a"] is KNOWN
        fresh = judge(None, None)
        assert fresh.changes == ()
        assert fresh.inventory["a"].version is None


EXTRA = Entry("x", "/etc/x", (), extra=True)


class TestFilesOutsideTheVaultConfig:
    """A program that reads the vault config once has nothing to do with them."""

    def test_coming_and_going(self) -> None:
        """Added, changed and removed as any secret, and no change of the vault config."""
        first = plan({}, {"x": EXTRA}, {"x": Observation(State.PRESENT, "k1:1")}, NOW)
        assert [change.kind for change in first.changes] == [ChangeKind.ADDED]
        moved = replace(EXTRA, path="/etc/y", scopes=(Scope("Client"),))
        second = plan(first.inventory, {"x": moved}, {"x": Observation(State.PRESENT, "k1:2")}, NOW)
        assert [change.kind for change in second.changes] == [ChangeKind.MODIFIED]
        assert second.rescoped == ("x",)
        third = plan(second.inventory, {}, {}, NOW)
        assert third.changes == (Change(ChangeKind.REMOVED, moved, None, "k1:2"),)
        assert not any(result.vault_config for result in (first, second, third))

    def test_into_the_vault_config_and_out_of_it(self) -> None:
        """The vault config gains or loses an entry then; the content is the same."""
        inside = replace(EXTRA, scopes=(Scope("Client"),), extra=False)
        seen = {"x": Observation(State.PRESENT, "k1:1")}
        first = plan({}, {"x": EXTRA}, seen, NOW)
        second = plan(first.inventory, {"x": inside}, seen, NOW)
        assert (second.changes, second.touched, second.rescoped) == ((), ("x",), ("x",))
        assert second.vault_config == VaultConfigData(("x",), (), (), ())
        third = plan(second.inventory, {"x": EXTRA}, seen, NOW)
        assert third.changes == ()
        assert third.vault_config == VaultConfigData((), ("x",), (), ())


class TestEntries:
    def test_that_left_are_removed_with_the_scope_they_had(self) -> None:
        """An entry gone from the vault config is `removed` if it had a version."""
        never = replace(KNOWN, entry=replace(ENTRY, name="b"), version=None)
        result = plan({"a": KNOWN, "b": never}, {}, {}, NOW)
        assert result.changes == (Change(ChangeKind.REMOVED, ENTRY, None, "k1:1"),)
        assert result.dropped == ("a", "b")
        assert result.vault_config == VaultConfigData((), ("a", "b"), (), ())
        assert result.inventory == {}

    def test_that_are_rescoped_or_repointed_are_told_so(self) -> None:
        """Another scope or file changes the vault config, and the secret only with its content."""
        moved = replace(ENTRY, path="/s/b", scopes=(Scope("Client", "c"),))
        result = judge(KNOWN, Observation(State.PRESENT, "k1:1"), moved)
        assert result.changes == ()
        assert result.vault_config == VaultConfigData((), (), ("a",), ("a",))
        assert result.inventory["a"].entry == moved

    def test_are_compared_by_name(self) -> None:
        """New and lost names are told apart and sorted."""
        entries = {name: replace(ENTRY, name=name) for name in "dcb"}
        known = {name: replace(KNOWN, entry=replace(ENTRY, name=name)) for name in "ab"}
        assert plan(known, entries, {}, "t").vault_config == VaultConfigData(
            ("c", "d"), ("a",), (), ()
        )


NAMES = st.sampled_from("abcd")
VERSIONS = st.sampled_from(["k1:1", "k1:2"])
ENTRIES = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(["/x", "/y"]), st.sampled_from(["Client", "Other"]))
).map(
    lambda drawn: {
        name: Entry(name, path, (Scope(type_),)) for name, (path, type_) in drawn.items()
    }
)
OBSERVATIONS = st.dictionaries(
    NAMES,
    st.builds(Observation, st.just(State.PRESENT), VERSIONS, settled=st.booleans())
    | st.builds(
        Observation,
        st.sampled_from([State.MISSING, State.UNREADABLE]),
        st.none(),
        st.sampled_from([None, "problem"]),
        settled=st.booleans(),
    ),
)
SCANS = st.lists(st.tuples(ENTRIES, OBSERVATIONS), min_size=1, max_size=5)


def known_after(
    scans: list[tuple[dict[str, Entry], dict[str, Observation]]],
) -> Mapping[str, Known]:
    """The inventory that a history of scans leads to."""
    known: Mapping[str, Known] = {}
    for entries, observations in scans:
        known = plan(known, entries, observations, THEN).inventory
    return known


@settings(max_examples=150)
@given(SCANS, ENTRIES, OBSERVATIONS)
def test_planning_again_gives_nothing(
    scans: list[tuple[dict[str, Entry], dict[str, Observation]]],
    entries: dict[str, Entry],
    observations: dict[str, Observation],
) -> None:
    """`plan(a, a)` is empty: after a plan, the same scan is no news."""
    first = plan(known_after(scans), entries, observations, NOW)
    again = plan(first.inventory, entries, observations, "later")
    assert (again.changes, again.touched, again.dropped) == ((), (), ())
    assert not again.vault_config
    assert again.inventory == first.inventory


@settings(max_examples=150)
@given(SCANS, ENTRIES, OBSERVATIONS)
def test_applying_a_plan_gives_what_was_seen(
    scans: list[tuple[dict[str, Entry], dict[str, Observation]]],
    entries: dict[str, Entry],
    observations: dict[str, Observation],
) -> None:
    """Applying `plan(a, b)` to `a` gives `b`: by its changes, and by its rows."""
    known = known_after(scans)
    result = plan(known, entries, observations, NOW)

    versions = {name: row.version for name, row in known.items() if row.version}
    for change in result.changes:
        assert versions.get(change.entry.name) == change.previous_version
        if change.version is None:
            del versions[change.entry.name]
        else:
            versions[change.entry.name] = change.version
    assert versions == {n: row.version for n, row in result.inventory.items() if row.version}

    rows = {name: row for name, row in known.items() if name not in result.dropped}
    rows.update((name, result.inventory[name]) for name in result.touched)
    assert rows == result.inventory
    assert result.inventory.keys() == entries.keys()

    names = [change.entry.name for change in result.changes]
    assert names == sorted(set(names))
    for name, seen in observations.items():
        if name in entries and seen.settled:
            row = result.inventory[name]
            assert row.state is seen.state
            if seen.state is not State.UNREADABLE:
                assert row.version == seen.version


@settings(max_examples=100)
@given(SCANS, st.lists(OBSERVATIONS, max_size=4), OBSERVATIONS)
def test_scans_in_between_never_change_the_end(
    scans: list[tuple[dict[str, Entry], dict[str, Observation]]],
    between: list[dict[str, Observation]],
    last: dict[str, Observation],
) -> None:
    """However many scans were missed, a scan that saw every file leads to the same versions."""
    known = known_after(scans)
    entries = scans[-1][0]
    seen = {
        name: replace(last.get(name, Observation(State.PRESENT, "k1:9")), settled=True)
        for name in entries
    }
    seen = {n: o for n, o in seen.items() if o.state is not State.UNREADABLE}
    through = known
    for observations in between:
        through = plan(through, entries, observations, THEN).inventory
    direct = plan(known, entries, seen, NOW).inventory
    coalesced = plan(through, entries, seen, NOW).inventory
    assert {n: direct[n].version for n in seen} == {n: coalesced[n].version for n in seen}


class TestAnotherKey:
    """The key of the fingerprints was replaced."""

    SAME = Observation(State.PRESENT, "k1:new", former="k1:1")

    def test_the_same_content_is_no_change(self) -> None:
        """Its version becomes the one under the new key; when it changed stays."""
        result = judge(KNOWN, self.SAME)
        assert result.changes == ()
        assert result.inventory == {"a": replace(KNOWN, version="k1:new")}
        assert result.touched == ("a",)
        again = plan(
            result.inventory, {"a": ENTRY}, {"a": Observation(State.PRESENT, "k1:new")}, NOW
        )
        assert (again.changes, again.touched) == ((), ())

    def test_content_that_is_readable_again_is_no_change(self) -> None:
        """A file that could not be read while the key was replaced is compared afterwards."""
        unreadable = replace(KNOWN, state=State.UNREADABLE, problem="cannot be read")
        result = judge(unreadable, self.SAME)
        assert result.changes == ()
        assert result.inventory == {"a": replace(KNOWN, version="k1:new")}

    def test_what_changed_since_the_scan_is_a_change(self) -> None:
        """A version that is no longer the known one proves nothing."""
        result = judge(replace(KNOWN, version="k1:2"), self.SAME)
        assert result.changes == (Change(ChangeKind.MODIFIED, ENTRY, "k1:new", "k1:2"),)

    def test_an_unsettled_file_keeps_its_version(self) -> None:
        """It is compared when it is at rest."""
        result = judge(KNOWN, replace(self.SAME, settled=False))
        assert (result.changes, result.inventory["a"]) == ((), KNOWN)
