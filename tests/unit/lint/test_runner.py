"""Who will run syncd: found from the command line or a unit; credentials by what systemd loads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.accounts import needs_root

from syncd.config.settings import Settings
from syncd.core.errors import ConfigurationError, SyncdError
from syncd.lint.runner import Runner, check_loaded, find_runner

KEY = "whsec_" + "c2VjcmV0c2VjcmV0c2VjcmV0"
if TYPE_CHECKING:
    from pathlib import Path

LOADED = "/run/credentials/syncd.service"


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def unit(root: Path, *lines: str, name: str = "syncd.service") -> None:
    write(root, f"/etc/systemd/system/{name}", "\n".join(["[Service]", *lines, ""]))


def settings(**paths: str) -> Settings:
    """A consumer whose credentials are these files."""
    hook = {"kind": "webhook", "name": "hook", "url": "http://127.0.0.1:1", **paths}
    return msgspec.convert({"vault_config": "/v", "consumers": [hook]}, Settings)


@needs_root
class TestFinding:
    def test_the_user_of_the_unit_is_the_default_for_root(self, tmp_path: Path) -> None:
        """With its groups; capabilities that decide about files are kept."""
        unit(
            tmp_path,
            "User=nobody",
            "SupplementaryGroups=daemon",
            "AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_NET_BIND_SERVICE",
            "Environment=BOX_VAULT_CONFIG=/u.json",
            "ExecStart=/usr/bin/syncd run -c /etc/syncd/u.yaml",
        )
        runner = find_runner(root=str(tmp_path))
        assert runner.identity is not None
        assert (runner.identity.name, runner.identity.uid) == ("nobody", 65534)
        assert 1 in runner.identity.groups
        assert runner.identity.capabilities == ("cap_dac_read_search",)
        assert str(runner) == "nobody (syncd.service)"
        assert runner.environment({"A": "b"}) == {"BOX_VAULT_CONFIG": "/u.json", "A": "b"}
        assert runner.config(None, {}) == "/etc/syncd/u.yaml"
        assert runner.config("/mine", {}) == "/mine"

    @pytest.mark.parametrize(
        "option", ["-c /a.yaml", "--config /a.yaml", "--config=/a.yaml", "-c/a.yaml"]
    )
    def test_the_configuration_of_the_unit(self, tmp_path: Path, option: str) -> None:
        """In every spelling of the option that the command takes."""
        unit(tmp_path, f"ExecStart=/usr/bin/syncd run {option} --once")
        assert find_runner(root=str(tmp_path)).config(None, {}) == "/a.yaml"

    def test_without_a_unit_root_judges_for_root(self, tmp_path: Path) -> None:
        """There is no service, so whoever runs the command may run syncd."""
        assert find_runner(root=str(tmp_path)) == Runner()
        assert find_runner("0").identity is None

    @pytest.mark.parametrize(
        ("arguments", "lines", "message"),
        [
            (("nobody-at-all", None), [], "there is no user nobody-at-all"),
            ((None, "other.service"), [], "there is no unit other.service"),
            ((None, None), ["User=nobody-at-all"], "there is no user nobody-at-all"),
            ((None, None), ["User=nobody", "Group=none-such"], "there is no group none-such"),
            ((None, None), ["User=x", "DynamicUser=yes"], "its user is not known"),
        ],
    )
    def test_a_runner_that_does_not_exist(
        self,
        arguments: tuple[str | None, str | None],
        lines: list[str],
        message: str,
        tmp_path: Path,
    ) -> None:
        """Is named where it was written."""
        unit(tmp_path, *lines)
        with pytest.raises(ConfigurationError, match=message):
            find_runner(*arguments, root=str(tmp_path))


def test_only_root_judges_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is sudo."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert not find_runner().is_known
    with pytest.raises(SyncdError, match="only root") as raised:
        find_runner("nobody")
    assert raised.value.remedy == "run it with sudo"


@needs_root
class TestLoaded:
    def check(self, tmp_path: Path, name: str, *lines: str, **more: Any) -> list[str]:
        unit(tmp_path, *lines)
        runner = find_runner(root=str(tmp_path))
        found = check_loaded(
            settings(signing_key_file=f"{LOADED}/{name}"), "c.yaml", runner, root=str(tmp_path)
        )
        assert set(found) == {f"{LOADED}/{name}"}
        return [f"{item.message}; {item.hint}" for item in found[f"{LOADED}/{name}"]]

    def test_one_in_the_store_is_good(self, tmp_path: Path) -> None:
        """Although the file in /run is not there while the unit does not run."""
        write(tmp_path, "/etc/credstore/key", KEY)
        assert self.check(tmp_path, "key", "LoadCredential=key") == []

    def test_an_encrypted_one_and_one_by_value_are_taken_as_they_are(self, tmp_path: Path) -> None:
        """Only systemd can read them."""
        write(tmp_path, "/etc/credstore.encrypted/key", "sealed")
        assert self.check(tmp_path, "key", "LoadCredential=key") == []
        assert self.check(tmp_path, "own", "SetCredential=own:abc") == []

    def test_one_that_the_unit_does_not_load(self, tmp_path: Path) -> None:
        """A similar name is suggested, else the line to add."""
        (found,) = self.check(tmp_path, "syncd.webhok-key", "LoadCredential=syncd.webhook-key")
        assert found.endswith("did you mean syncd.webhook-key?")
        (found,) = self.check(tmp_path, "key")
        assert "add LoadCredential=key" in found

    @pytest.mark.parametrize("directory", ["/etc/credstore", "/run/credentials/@system"])
    def test_one_that_the_unit_imports_by_a_pattern(self, tmp_path: Path, directory: str) -> None:
        """From a store, or as a credential of the machine (systemd.exec(5))."""
        write(tmp_path, f"{directory}/syncd.key", KEY)
        assert self.check(tmp_path, "syncd.key", "ImportCredential=syncd.*") == []
        (found,) = self.check(tmp_path, "syncd.other", "ImportCredential=syncd.*")
        assert "there is no credential syncd.other" in found

    def test_one_that_is_in_no_store(self, tmp_path: Path) -> None:
        """The remedy names the file to write, not the path in /run."""
        (found,) = self.check(tmp_path, "key", "LoadCredential=key")
        assert found.endswith("write it into /etc/credstore/key (root, 0600)")

    def test_one_with_the_wrong_content(self, tmp_path: Path) -> None:
        """It is read where it is stored, and named so."""
        write(tmp_path, "/etc/credstore/key", "not a key")
        (found,) = self.check(tmp_path, "key", "LoadCredential=key")
        assert f"{tmp_path}/etc/credstore/key" in found
        assert "whsec_" in found
        (found,) = self.check(tmp_path, "key", "LoadCredential=key:/none")
        assert "cannot be loaded" in found

    def test_one_of_another_unit(self, tmp_path: Path) -> None:
        """systemd shows a unit's credentials to its own user only."""
        unit(tmp_path, "LoadCredential=key")
        runner = find_runner(root=str(tmp_path))
        path = "/run/credentials/other.service/key"
        found = check_loaded(settings(signing_key_file=path), "c", runner, root=str(tmp_path))
        assert [item.hint for item in found[path]] == [f"write {LOADED}/key"]
        found = check_loaded(settings(signing_key_file=path), "c", Runner(), root=str(tmp_path))
        assert "there is no unit other.service" in found[path][0].message

    def test_one_of_a_unit_that_cannot_be_read(self, tmp_path: Path) -> None:
        """Such as a link that leads nowhere."""
        (tmp_path / "etc/systemd/system").mkdir(parents=True)
        (tmp_path / "etc/systemd/system/other.service").symlink_to(tmp_path / "missing")
        path = "/run/credentials/other.service/key"
        found = check_loaded(settings(signing_key_file=path), "c", Runner(), root=str(tmp_path))
        assert found[path][0].message.endswith("cannot be read: No such file or directory")

    def test_one_whose_source_holds_a_nul(self, tmp_path: Path) -> None:
        """There the line ends, as for systemd."""
        (found,) = self.check(
            tmp_path, "key", "LoadCredential=key:/none\0b", "EnvironmentFile=/x\0y"
        )
        assert "cannot be loaded from" in found


def test_a_user_is_told_that_root_must_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is for root only: nothing is claimed about it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    path = f"{LOADED}/key"
    found = check_loaded(settings(signing_key_file=path), "c", Runner(is_known=False))
    assert [(item.code, item.hint) for item in found[path]] == [
        ("credential-unchecked", "check with sudo syncd check")
    ]
