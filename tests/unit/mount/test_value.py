"""Reading the value of one secret."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.mount import publish

from syncd.config.settings import Watch
from syncd.core.decode import Duration, Size
from syncd.core.errors import RefusedError
from syncd.core.model import Entry, Scope
from syncd.mount.read import Reader
from syncd.mount.value import OwnFiles, read_value, read_version

if TYPE_CHECKING:
    from pathlib import Path


def entries(*paths: object) -> dict[str, Entry]:
    found = (str(path) for path in paths)
    return {p.rpartition("/")[2]: Entry(p.rpartition("/")[2], p, (Scope("Client"),)) for p in found}


def taken(
    name: str, known: dict[str, Entry], watch: Watch, version: str | None = None
) -> bytes | None:
    return read_value(name, known, watch, key=KEY, known=lambda _name: version, own=OwnFiles())


def test_the_current_generation(tmp_path: Path) -> None:
    """The value is what the generation holds now, byte for byte."""
    known = entries(tmp_path / "mount/a", tmp_path / "mount/b")
    for value in (b"\xffone\n", b"two"):
        publish(tmp_path / "mount", {"a": value, "b": b"other"})
        assert taken("a", known, Watch()) == value
    assert taken("b", known, Watch()) == b"other"


def test_a_file_being_written(tmp_path: Path) -> None:
    """The content of a plain file is given when the inventory has it, and so found it at rest."""
    (tmp_path / "a").write_bytes(b"half")
    known = entries(tmp_path / "a")
    assert taken("a", known, Watch()) is None
    assert taken("a", known, Watch(), version_of("a", b"half")) == b"half"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unknown", "is not in the vault config"),
        ("missing", "there is no file"),
        ("empty", "is empty"),
        ("directory", "is a directory"),
        ("outside", "leads outside the watch roots"),
        ("large", "larger than max_secret_size"),
    ],
)
def test_nothing_to_give(tmp_path: Path, name: str, reason: str) -> None:
    """What a scan would not take for a value is none, and neither is an empty one."""
    mount = tmp_path / "mount"
    publish(mount, {"empty": b"", "large": b"x" * 11, "directory/x": b"1"})
    (tmp_path / "elsewhere").write_bytes(b"another's")
    (mount / "outside").symlink_to(tmp_path / "elsewhere")
    known = entries(*(mount / n for n in ("missing", "empty", "directory", "outside", "large")))
    watch = Watch(roots=(str(mount),), max_secret_size=10)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=reason):
        taken(name, known, watch)


KEY = bytes(32)


def read(mount: Path, name: str, version: str, *, path: str = "", limit: int = 64) -> bytes | None:
    entry = Entry(name, path or str(mount / name), ())
    watch = Watch(roots=(str(mount),), settle=Duration(0), max_secret_size=Size(limit))
    return read_version(entry, watch, version, key=KEY, own=OwnFiles())


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "mount"
    publish(path, {"a": b"value", "b": b"value"})
    return path


def version_of(name: str, content: bytes) -> str:
    return Reader(KEY, Watch(), settle=0, grace=0).fingerprint(name, content)


def test_the_announced_version(mount: Path) -> None:
    """Through the links of an AtomicWriter mount."""
    assert read(mount, "a", version_of("a", b"value")) == b"value"


def test_any_other_version(mount: Path) -> None:
    """Of an earlier content, or of another secret with the same content."""
    assert read(mount, "a", version_of("a", b"other")) is None
    assert read(mount, "b", version_of("a", b"value")) is None


def test_what_lies_outside_the_roots(mount: Path, tmp_path: Path) -> None:
    """By its path, or by a link."""
    version = version_of("a", b"value")
    outside = tmp_path / "outside"
    outside.write_bytes(b"value")
    (mount / "link").symlink_to(outside)
    assert read(mount, "a", version, path=str(outside)) is None
    assert read(mount, "a", version, path=str(mount / "link")) is None
    assert read(mount, "a", version, path=f"{mount}/../outside") is None


def test_what_is_no_secret(mount: Path) -> None:
    """Nothing, a directory, a FIFO that would block, or something too large."""
    version = version_of("a", b"value")
    os.mkfifo(mount / "fifo")
    for name in ("missing", "fifo", "..data"):
        assert read(mount, "a", version, path=str(mount / name)) is None
    assert read(mount, "a", version, limit=4) is None
    assert read(mount, "a", version, limit=5) == b"value"


# what is never read as a value


@pytest.fixture
def credential(tmp_path: Path) -> Path:
    path = tmp_path / "role-id"
    path.write_bytes(b"syncd's own")
    return path


def own_value(path: Path, roots: tuple[Path, ...], own: OwnFiles) -> bytes | None:
    watch = Watch(roots=tuple(map(str, roots)), settle=Duration(0))
    known = entries(path)
    return read_value(path.name, known, watch, key=KEY, known=lambda _name: None, own=own)


@pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "alias"])
def test_a_credential_of_syncd_is_no_secret(tmp_path: Path, credential: Path, way: str) -> None:
    """By its path, by any link, and by a directory's other name."""
    own = OwnFiles(files=(str(credential),))
    path = {
        "itself": credential,
        "alias": tmp_path / "alias" / credential.name,
    }.get(way, tmp_path / "link")
    if way == "symlink":
        path.symlink_to(credential)
    elif way == "hard link":
        path.hardlink_to(credential)
    elif way == "alias":
        (tmp_path / "alias").symlink_to(tmp_path)
    with pytest.raises(RefusedError, match="is one of syncd's own files"):
        own_value(path, (tmp_path,), own)
    assert own_value(path, (tmp_path,), OwnFiles()) == b"syncd's own"


def test_what_is_in_the_state_directory_is_no_secret(tmp_path: Path) -> None:
    """The fingerprint key and the ledger, by whatever link."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "fingerprint.key").write_bytes(b"key")
    (tmp_path / "a").hardlink_to(state / "fingerprint.key")
    own = OwnFiles(directories=(str(state),))
    for path in (state / "fingerprint.key", tmp_path / "a"):
        with pytest.raises(RefusedError, match="is one of syncd's own files"):
            own_value(path, (tmp_path,), own)


def test_a_root_is_a_boundary_for_values(tmp_path: Path) -> None:
    """The writer of one root cannot have a file of another root sent out."""
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
    (tmp_path / "B" / "db").write_bytes(b"another team's")
    (tmp_path / "A" / "app").symlink_to(tmp_path / "B" / "db")
    (tmp_path / "A" / "door").symlink_to(tmp_path / "B")
    roots = (tmp_path / "A", tmp_path / "B")
    for path in (tmp_path / "A" / "app", tmp_path / "A" / "door" / "db"):
        with pytest.raises(RefusedError, match="leads outside the watch roots"):
            own_value(path, roots, OwnFiles())
    assert own_value(tmp_path / "B" / "db", roots, OwnFiles()) == b"another team's"
    with pytest.raises(RefusedError, match="lies outside the watch roots"):
        own_value(tmp_path / "B" / "db", (tmp_path / "A",), OwnFiles())


def test_the_value_of_a_file_outside_the_vault_config(tmp_path: Path, mount: Path) -> None:
    """Its directory counts as a root, since the operator named it; a target of links does not."""
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls/key").write_bytes(b"key")
    (tmp_path / "tls/link").symlink_to(mount / "a")
    watch = Watch(roots=(str(mount),))
    paths = {name: str(tmp_path / "tls" / name) for name in ("key", "link")}
    known = {name: Entry(name, path, (), extra=True) for name, path in paths.items()}
    assert taken("key", known, watch, version_of("key", b"key")) == b"key"
    with pytest.raises(RefusedError, match="outside the watch roots"):
        taken("link", known, watch)
