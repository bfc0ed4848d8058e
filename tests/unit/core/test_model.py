"""syncd.core.model: scopes, grants and what may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.model import Entry, Grant, Scope

CLIENTS, MINE, OTHER = Scope("Client"), Scope("Client", "mine"), Scope("Client", "other")


class TestScope:
    @pytest.mark.parametrize(
        ("granted", "asked", "covered"),
        [
            (CLIENTS, CLIENTS, True),
            (CLIENTS, MINE, True),
            (MINE, MINE, True),
            (MINE, CLIENTS, False),
            (MINE, OTHER, False),
            (CLIENTS, Scope("IdentityProvider"), False),
        ],
    )
    def test_covers_what_lies_within(self, granted: Scope, asked: Scope, covered: bool) -> None:
        """A type covers all of its resources, a resource only itself."""
        assert granted.covers(asked) is covered

    def test_reads_as_a_reference(self) -> None:
        """A scope is shown as `Type` or `Type/id`."""
        assert (str(CLIENTS), str(MINE)) == ("Client", "Client/mine")


class TestGrant:
    def test_without_scopes_sees_everything(self) -> None:
        """No list means no limit, even for a secret without a scope."""
        assert Grant().sees([MINE])
        assert Grant().sees([])

    def test_takes_the_types_that_it_names(self) -> None:
        """Without any, all of them."""
        assert Grant().takes("a")
        assert Grant(types=["a"]).takes("a")
        assert not Grant(types=["a"]).takes("b")

    def test_shows_files_outside_the_vault_config(self) -> None:
        """To those who want them; without a scope, to those without a scope."""
        file, entry = Entry("x", "/x", (), extra=True), Entry("a", "/a", (Scope("Client"),))
        assert Grant().shows(file)
        assert not Grant(extra=False).shows(file)
        assert Grant(extra=False).shows(entry)
        assert not Grant([Scope("Client")]).shows(file)

    def test_with_no_scope_sees_nothing(self) -> None:
        """An empty list grants nothing."""
        assert not Grant([]).sees([MINE])

    def test_sees_a_secret_if_any_of_its_scopes_is_granted(self) -> None:
        """One covered scope is enough; a grant of one Client does not cover all Clients."""
        assert Grant([MINE]).sees([OTHER, MINE])
        assert not Grant([MINE]).sees([CLIENTS, OTHER])

    @settings(max_examples=50)
    @given(st.lists(st.sampled_from([CLIENTS, MINE, OTHER])), st.sampled_from([CLIENTS, MINE]))
    def test_never_shrinks_when_it_grows(self, scopes: list[Scope], more: Scope) -> None:
        """Whatever a grant sees, it still sees with one scope more."""
        for secret in (CLIENTS, MINE, OTHER):
            assert Grant([*scopes, more]).sees([secret]) >= Grant(scopes).sees([secret])
