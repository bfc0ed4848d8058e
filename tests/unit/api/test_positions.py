"""What event ids mean to a limited grant: numbers without gaps that keep their meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support.mail import APP, TIME, Mail, change

from syncd.api.positions import START, AllPositions, GrantPositions, Place, numbered
from syncd.core.event_data import VAULT_CONFIG_CHANGED, VaultConfigData
from syncd.core.events import Event, Origin, Stamp
from syncd.core.model import Grant, Scope
from syncd.ledger.numbering import Base, grant_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MINE, OTHER = Grant([APP]), Scope("IdentityProvider", "x")
STAMP = Stamp("5f0c2a91", "/syncd/test")
LONG_AGO = "2000-01-01T00:00:00.000Z"


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[Mail]:
    mail = Mail(str(tmp_path), {})
    yield mail
    mail.close()


def add(mail: Mail, visible: Sequence[bool]) -> None:
    for mine in visible:
        mail.ledger.append(change("a", 1, 2, APP if mine else OTHER), mail.grants)


def positions(mail: Mail, grant: Grant = MINE) -> GrantPositions:
    base = mail.ledger.number([grant])[grant_key(grant)]
    return GrantPositions(base, grant, "/syncd/test", mail.ledger)


def test_numbers_have_no_gaps(mail: Mail) -> None:
    """Each event that the grant shows has the next number; a position leads to the one after it."""
    mine = positions(mail)
    assert mine.place(0) == Place(0, 0)
    add(mail, [False, True, False, True, True, False])
    assert [mine.place(sequence).number for sequence in range(7)] == [0, 0, 1, 1, 2, 3, 3]
    found = [mine.find(mine.stamp.id(number), 6) for number in range(5)]
    assert found == [Place(0, 0), Place(2, 1), Place(4, 2), Place(5, 3), None]
    assert mine.find(START, 6) == Place(0, 0)
    assert mine.find("5f0c2a91-1", 6) is None
    assert mine.find(mine.stamp.id(2), 3) is None  # the rest is not published yet
    assert mine.resume(2, 6) == Place(4, 2)


def test_the_changes_of_a_vault_config_count_in_part(mail: Mail) -> None:
    """One that is about visible secrets has a number, another one has none."""
    mine = positions(mail)
    for scope in (OTHER, APP):
        data = VaultConfigData(("a",), (), (), ())
        event = Event(0, TIME, VAULT_CONFIG_CHANGED, "/v", data, {"a": (scope,)})
        mail.ledger.append(event, mail.grants)
    assert mine.place(2) == Place(2, 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(st.booleans(), max_size=6), st.booleans(), st.booleans())))
def test_numbers_keep_their_meaning(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:  # type: ignore[type-arg] # tuples
    """Pruning and restarts change no number, whether or not the events were read before."""
    mail = Mail(str(tmp_path_factory.mktemp("state")), {})
    try:
        mine, truth, last = positions(mail), [], 0
        epoch = mine.stamp.epoch
        for visible, restart, read in steps:
            add(mail, visible)
            truth += [last + index for index, item in enumerate(visible, 1) if item]
            last += len(visible)
            if read:
                mine.place(last)
            mail.ledger.prune(3, LONG_AGO)
            if restart:
                mine = positions(mail)
            pruned, _ = mail.ledger.span()
            assert mine.place(last) == Place(last, len(truth))
            assert mine.stamp.epoch == epoch
            for number in range(len(truth) + 2):
                found = mine.resume(number, last)
                following = truth[number] if number < len(truth) else last + 1
                if number > len(truth) or following <= pruned:
                    assert found is None
                else:
                    assert found is not None
                    assert max(pruned, truth[number - 1] if number else 0) == found.sequence
    finally:
        mail.close()


def test_pruned_before_it_could_be_stored(mail: Mail) -> None:
    """Without a stored base nobody knows what was pruned: positions from before are lost."""
    mine = GrantPositions(Base.new(0), MINE, "/syncd/test", mail.ledger)
    before = mine.stamp.epoch
    add(mail, [True] * 5)
    mail.ledger.prune(2, LONG_AGO)
    assert mine.place(5) == Place(5, 2)
    assert mine.stamp.epoch != before


def test_numberings_are_each_grants_own(mail: Mail) -> None:
    """Equal grants share one; one that is no longer configured is forgotten, not taken up again."""
    grants = [MINE, Grant([OTHER]), Grant([Scope("Client", "app")]), Grant([])]
    bases = mail.ledger.number(grants)
    assert len({base.epoch for base in bases.values()}) == len(bases) == 3
    assert mail.ledger.number(grants) == bases
    mail.ledger.number([])
    assert mail.ledger.base(MINE) is None
    assert mail.ledger.number(grants)[grant_key(MINE)].epoch != bases[grant_key(MINE)].epoch
    scopes = [Scope("Client"), Scope("Client", "a"), Scope("B")]
    assert grant_key(Grant(scopes)) == grant_key(Grant(reversed(scopes)))


def test_who_sees_everything_has_the_ledgers_positions(mail: Mail) -> None:
    """Ids are sequences, and a position before the newest pruned event is lost."""
    add(mail, [True] * 5)
    mail.ledger.prune(2, LONG_AGO)
    everything = AllPositions(STAMP, mail.ledger)
    assert everything.place(4) == Place(4, 4)
    assert everything.find(START, 5) == Place(3, 3)
    assert everything.find("5f0c2a91-3", 5) == everything.resume(3, 5) == Place(3, 3)
    for lost in ("5f0c2a91-2", "5f0c2a91-6", "other-4"):
        assert everything.find(lost, 5) is None
    assert everything.resume(2, 5) is None


def test_an_event_of_another_installation() -> None:
    """Its id there counts the events of that installation, so it is replaced, too."""
    event = change("a", 1, None)
    stamp = Stamp("e", "/here")
    mine = numbered(event, stamp, 7)
    assert (mine.sequence, stamp.cloud_event(mine).id) == (7, "e-7")
    relayed = numbered(
        Event(0, TIME, event.type, "a", event.data, None, Origin("z-99", "/there")), stamp, 8
    )
    wire = stamp.cloud_event(relayed)
    assert (wire.id, wire.source) == ("e-8", "/there")
