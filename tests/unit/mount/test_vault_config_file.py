"""The vault config as a file: last good one kept, half-written ones left alone."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import anyio
import pytest
from support.waiting import DEADLINE, until

from syncd.core.errors import ConfigurationError
from syncd.core.vault_config import decode_vault_config
from syncd.mount import vault_config_file
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.system.files import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from syncd.mount.way import Watched

ONE = '{"secret": {"a": {"path": "/m/a", "scope": {"resource_type": "Client"}}}}'
TWO = ONE.replace('"a"', '"b"')
SETTLE = 0.01


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "vault-config.json"
    write(made, ONE)
    return made


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def refreshed(file: VaultConfigFile) -> bool:
    """Reads the file until it is at rest; whether something changed."""
    changed = await file.refresh()
    while file.postponed:
        await anyio.sleep(SETTLE)
        changed = await file.refresh()
    return changed


async def loaded(path: Path) -> VaultConfigFile:
    file = VaultConfigFile(str(path), SETTLE)
    await file.load()
    return file


async def test_a_change_is_taken_over_and_the_same_content_is_none(path: Path) -> None:
    """Only what reads differently counts as changed."""
    file = await loaded(path)
    assert set(file.entries) == {"a"}
    write(path, ONE)
    assert await refreshed(file) is False
    write(path, TWO)
    assert await refreshed(file) is True
    assert (set(file.entries), file.valid) == ({"b"}, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"secret": {"a": {}}}', "[" * 100_000, "\0"])
async def test_a_broken_edit_keeps_the_last_good_one(path: Path, text: str) -> None:
    """It is said once, and its repair is said as well."""
    file = await loaded(path)
    write(path, text)
    assert await refreshed(file) is True
    assert (set(file.entries), file.valid) == ({"a"}, False)
    assert file.findings
    assert await refreshed(file) is False
    write(path, ONE)
    assert await refreshed(file) is True
    assert (file.valid, file.findings) == (True, ())


def replace(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        path.touch()
        os.truncate(path, (32 << 20) + 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gone", "cannot be read: No such file or directory"),
        ("directory", "cannot be read: not a regular file"),
        ("fifo", "cannot be read: not a regular file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("large", "cannot be read: larger than 32 MiB"),
    ],
)
async def test_what_is_no_file_is_rejected_without_waiting(
    path: Path, kind: str, reason: str
) -> None:
    """The reason is a finding with the path; the last good one stays."""
    file = await loaded(path)
    replace(path, kind)
    with anyio.fail_after(DEADLINE):
        assert await file.refresh() is True
        assert await file.refresh() is False
    (found,) = file.findings
    assert (found.code, found.source, file.valid) == ("vault-config-unreadable", str(path), False)
    assert found.message == reason
    assert found.hint == "set vault_config or BOX_VAULT_CONFIG to the JSON file that Aidbox reads"
    assert set(file.entries) == {"a"}
    with pytest.raises(ConfigurationError) as raised:
        await loaded(path)
    assert raised.value.findings == file.findings


async def test_a_file_of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is a permission, not another path."""

    def refuse(_path: str, _limit: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(vault_config_file, "read_file", refuse)
    with pytest.raises(ConfigurationError, match=f"let uid {os.geteuid()} read it"):
        await loaded(path)


async def test_a_file_that_is_being_written_is_left_alone(path: Path) -> None:
    """New content is put off until a second reading finds the same, except at the first time."""
    file = await loaded(path)
    write(path, ONE + " ")
    assert await file.refresh() is False
    assert (set(file.entries), file.postponed) == ({"a"}, True)
    write(path, TWO)
    await anyio.sleep(SETTLE)
    assert await file.refresh() is False, "it is another content"
    assert set((await loaded(path)).entries) == {"b"}
    await anyio.sleep(SETTLE)
    assert await file.refresh() is True
    assert file.postponed is False


async def test_a_file_system_that_does_not_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported, the last valid one stays, and when it answers the file is read."""
    file = await loaded(path)
    write(path, TWO)
    answered = threading.Event()

    def silent(path: str, limit: int) -> tuple[bytes, os.stat_result]:
        answered.wait()
        return read_file(path, limit)

    monkeypatch.setattr(vault_config_file, "LIMIT", 0.01)
    monkeypatch.setattr(vault_config_file, "read_file", silent)
    assert await file.refresh() is True
    (found,) = file.findings
    assert (found.message, file.valid) == ("its file system does not answer", False)
    assert await file.refresh() is False
    answered.set()
    monkeypatch.setattr(vault_config_file, "LIMIT", DEADLINE)
    assert await refreshed(file) is True
    assert (set(file.entries), file.findings) == ({"b"}, ())


async def test_links_are_watched_before_the_file_is_read(tmp_path: Path, path: Path) -> None:
    """What is behind a link is watched, and a link that is swapped meanwhile is followed again."""
    (tmp_path / "other.json").write_text(TWO)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    file = VaultConfigFile(str(link), SETTLE)
    armed: list[Watched] = []

    def arm(watched: Watched) -> None:
        if not armed:
            link.unlink()
            link.symlink_to(tmp_path / "other.json")
        armed.append(watched)

    assert await file.refresh(at_rest=False, arm=arm) is True
    assert set(file.entries) == {"b"}
    assert [sorted(found.files[str(tmp_path)]) for found in armed] == [[path.name], ["other.json"]]
    assert file.watched.ways[str(tmp_path)] == {"link.json", "other.json"}


async def test_no_descriptor_is_left_open_by_a_cancellation(path: Path) -> None:
    """Cancelled at any moment, the reading closes what it opened."""
    file = await loaded(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(file.refresh)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_decoding_is_not_done_in_the_event_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large vault config takes seconds, in which probes and deliveries go on."""
    going_on = threading.Event()
    original = decode_vault_config

    def slowly(text: bytes, source: str) -> object:
        assert going_on.wait(DEADLINE)
        return original(text, source)

    monkeypatch.setattr(vault_config_file, "decode_vault_config", slowly)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loaded, path)
        await anyio.wait_all_tasks_blocked()
        going_on.set()
