"""Service units as systemd reads them: search path, drop-ins, credentials, environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from syncd.system.units import Credential, read_unit

if TYPE_CHECKING:
    from pathlib import Path

UNIT = """\
[Unit]
User=nobody
[Service]
# a comment
ExecStart=/usr/bin/syncd run \\
  -c /etc/syncd/other.yaml
User=syncd
SupplementaryGroups=a b
LoadCredential=key
LoadCredential=direct:/srv/direct
LoadCredentialEncrypted=sealed
SetCredential=given:abc
Environment="SYNCD_LISTEN=127.0.0.1:1" NAME=%N
EnvironmentFile=-/etc/default/syncd
"""


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "/usr/lib/systemd/system/syncd.service", UNIT)
    return tmp_path


def test_a_unit_has_the_settings_of_its_service_section(root: Path) -> None:
    """Lines continue, comments do not count, and lists add up."""
    write(root, "/etc/default/syncd", "# none\nSYNCD_LOG_LEVEL='debug'\n")
    unit = read_unit("syncd", str(root))
    assert unit is not None
    assert (unit.name, unit.last("User")) == ("syncd.service", "syncd")
    assert unit.words("SupplementaryGroups") == ["a", "b"]
    assert unit.arguments == ["/usr/bin/syncd", "run", "-c", "/etc/syncd/other.yaml"]
    assert unit.environment == {
        "SYNCD_LISTEN": "127.0.0.1:1",
        "NAME": "syncd",
        "SYNCD_LOG_LEVEL": "debug",
    }


def test_drop_ins_add_replace_and_reset(root: Path) -> None:
    """By the name of their file; the first directory of the search path wins."""
    drop_in = "systemd/system/syncd.service.d"
    write(root, f"/etc/{drop_in}/20-b.conf", "[Service]\nUser=second\n")
    write(root, f"/etc/{drop_in}/10-a.conf", "[Service]\nUser=first\nSupplementaryGroups=\n")
    write(root, f"/usr/lib/{drop_in}/20-b.conf", "[Service]\nUser=hidden\n")
    write(root, f"/etc/{drop_in}/30-not-one.txt", "[Service]\nUser=ignored\n")
    unit = read_unit("syncd.service", str(root))
    assert unit is not None
    assert unit.last("User") == "second"
    assert unit.words("SupplementaryGroups") == []


def test_a_unit_of_the_administrator_comes_first_and_a_masked_one_is_none(root: Path) -> None:
    """As in systemd.unit(5)."""
    write(root, "/etc/systemd/system/syncd.service", "[Service]\nUser=own\n")
    unit = read_unit("syncd.service", str(root))
    assert unit is not None
    assert unit.last("User") == "own"
    mask = root / "etc/systemd/system/masked.service"
    mask.symlink_to("/dev/null")
    assert read_unit("masked.service", str(root)) is None
    assert read_unit("absent", str(root)) is None


def test_an_instance_of_a_template(root: Path) -> None:
    """Its file is the template's, and its specifiers are filled in."""
    write(root, "/etc/systemd/system/syncd@.service", "[Service]\nUser=%i\n")
    write(root, "/etc/systemd/system/syncd@.service.d/x.conf", "[Service]\nGroup=%p%%\n")
    unit = read_unit("syncd@blue.service", str(root))
    assert unit is not None
    assert (unit.last("User"), unit.last("Group")) == ("blue", "syncd%")


def test_credentials_are_found_where_systemd_looks(root: Path) -> None:
    """By a path, in the credential stores, encrypted or not, or in the unit itself."""
    unit = read_unit("syncd", str(root))
    assert unit is not None
    assert unit.credential("other") is None
    assert unit.credential("given") == Credential(None, given=True)
    assert unit.credential("direct") == Credential(f"{root}/srv/direct")
    assert unit.credential("key") == Credential(None, wanted="/etc/credstore/key")
    sealed = "/etc/credstore.encrypted/sealed"
    assert unit.credential("sealed") == Credential(None, wanted=sealed)
    write(root, "/usr/lib/credstore/key", "x")
    assert unit.credential("key") == Credential(f"{root}/usr/lib/credstore/key")
    write(root, "/etc/credstore/key", "x")
    assert unit.credential("key") == Credential(f"{root}/etc/credstore/key")
    write(root, sealed, "x")
    assert unit.credential("sealed") == Credential(f"{root}{sealed}", encrypted=True)
