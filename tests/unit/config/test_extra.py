"""Files outside the vault config, beside its entries."""

from __future__ import annotations

from syncd.config.extra import extra_entries, join, of_vault_config, place_of
from syncd.config.settings import ExtraFile, ScopeSettings, Settings, Watch
from syncd.core.model import Entry, Scope

CLIENT = ScopeSettings(resource_type="Client")
VAULT_CONFIG = "/etc/aidbox/vault-config.json"
MAPPED = {"a": Entry("a", "/m/a", (Scope("Client"),))}


def test_forms() -> None:
    """A path alone is its own name; a scope may be one or several."""
    watch = Watch(
        extra=(
            "/t/key",
            ExtraFile(path="/n", name="nats", scope=CLIENT),
            ExtraFile(path="/l", scope=(CLIENT, CLIENT)),
        )
    )
    assert extra_entries(watch) == {
        "/t/key": Entry("/t/key", "/t/key", (), extra=True),
        "nats": Entry("nats", "/n", (Scope("Client"),), extra=True),
        "/l": Entry("/l", "/l", (Scope("Client"),), extra=True),
    }


def test_beside_the_vault_config() -> None:
    """All of them together, and those of the vault config alone."""
    extra = extra_entries(Watch(extra=("/t/key",)))
    entries, findings = join(MAPPED, extra, VAULT_CONFIG)
    assert (entries, findings) == ({**MAPPED, **extra}, [])
    assert of_vault_config(entries) == MAPPED
    assert join(MAPPED, {}, VAULT_CONFIG)[0] is MAPPED


def test_collisions() -> None:
    """One finding for a name or a path that both have; the vault config's entry stays."""
    for file, where in (
        (ExtraFile(path="/m/b", name="a"), "$.secret.a"),
        (ExtraFile(path="/m/a", name="b"), "$.secret.a.path"),
        (ExtraFile(path="/m/a", name="a"), "$.secret.a.path"),
    ):
        entries, findings = join(MAPPED, extra_entries(Watch(extra=(file,))), VAULT_CONFIG)
        assert entries["a"] is MAPPED["a"]
        assert [(item.code, item.where) for item in findings] == [("extra-conflict", where)]
        assert "watch.extra[0]" in findings[0].message


def test_where_entries_are_written() -> None:
    """In the vault config, or in the configuration, at the item."""
    watch = Watch(extra=("/t/key", ExtraFile(path="/n", name="nats")))
    settings = Settings(vault_config=VAULT_CONFIG, watch=watch)
    key, nats = extra_entries(watch).values()
    assert place_of(settings, MAPPED["a"]) == (VAULT_CONFIG, "$.secret.a.path")
    assert place_of(settings, key, config="c") == ("c", "watch.extra[0]")
    assert place_of(settings, nats, config="c") == ("c", "watch.extra[1].path")
    gone = Entry("x", "/x", (), extra=True)
    assert place_of(settings, gone, config="c") == ("c", "watch.extra")
