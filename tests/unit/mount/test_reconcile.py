"""The loop over real files, real inotify and a real ledger: nothing lost, nothing false."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from syncd.config.settings import Watch
from syncd.core.errors import StateError, TemporaryError
from syncd.core.event_data import SecretData, VaultConfigData
from syncd.core.model import Grant
from syncd.core.payload import File
from syncd.ledger.ledger import Ledger
from syncd.ledger.state_dir import StateDir
from syncd.mount import watch
from syncd.mount.reconcile import Reconciler
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.provision.publish import Publisher
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from syncd.core.events import Commit, Event

DEADLINE = 15.0


class Bench:
    """A mount, a vault config, a ledger, and a reconciler over them."""

    def __init__(self, directory: Path) -> None:
        self.mount = directory / "mount"
        self.mount.mkdir()
        self.vault_config = directory / "config" / "vault-config.json"
        self.vault_config.parent.mkdir()
        self.state = StateDir.open(str(directory / "state"))
        self.ledger = Ledger.open(self.state, "boot")
        self.commits: list[Commit] = []
        self.woken = anyio.Event()
        self.publisher = Publisher(str(self.mount))
        self.values: dict[str, bytes] = {}

    def close(self) -> None:
        self.ledger.close()
        self.state.close()

    def map(self, *names: str) -> None:
        entries = {
            name: {"path": f"{self.mount}/{name}", "scope": {"resource_type": "Client"}}
            for name in names
        }
        new = self.vault_config.with_suffix(".new")
        new.write_text(json.dumps({"secret": entries}))
        os.utime(new, (1, 1))
        new.replace(self.vault_config)

    async def publish(self, **values: bytes) -> None:
        await anyio.to_thread.run_sync(lambda: self.publish_here(**values))

    def publish_here(self, **values: bytes) -> None:
        self.values |= values
        self.publisher.publish([File(name, value) for name, value in self.values.items()])

    async def lay(self, *files: File) -> None:
        await anyio.to_thread.run_sync(self.publisher.publish, files)

    def events(self) -> list[Event]:
        return [event for commit in self.commits for event in commit.events]

    def changes(self) -> list[tuple[str, str]]:
        return [
            (event.data.secret, event.data.change.value)
            for event in self.events()
            if isinstance(event.data, SecretData)
        ]

    async def wait(self, count: int) -> list[tuple[str, str]]:
        """All changes of secrets, once there are that many."""
        with anyio.fail_after(DEADLINE):
            while len(self.changes()) < count:
                await self.woken.wait()
                self.woken = anyio.Event()
        return self.changes()

    def _committed(self, commit: Commit) -> None:
        self.commits.append(commit)
        self.woken.set()

    async def make(self, **settings: Any) -> Reconciler:
        self.woken = anyio.Event()
        defaults = {"settle": 0.02, "rescan_interval": 600.0, "remount_grace": 600.0}
        wanted = Watch(**{**defaults, **settings})
        file = VaultConfigFile(str(self.vault_config), wanted.settle)
        await file.load()
        self.reconciler = Reconciler(
            wanted,
            file,
            key=self.state.key,
            ledger=self.ledger,
            consumers={"hook": Grant()},
            metrics=Metrics(),
            on_commit=self._committed,
        )
        return self.reconciler

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Reconciler]:
        reconciler = await self.make(**settings)
        try:
            async with anyio.create_task_group() as tasks:
                await reconciler.start()
                tasks.start_soon(reconciler.run)
                yield reconciler
                tasks.cancel_scope.cancel()
        finally:
            reconciler.watcher.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a state of the loop that nobody signals."""
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


async def test_only_what_changed_is_told_and_a_swap_as_a_whole(bench: Bench) -> None:
    """The baseline is quiet; one swap is one commit of one time; the same content is nothing."""
    await bench.publish(a=b"1", b=b"1", c=b"1")
    bench.map("a", "b", "c")
    async with bench.running():
        await bench.lay(*(File(name, b"1", 0o600) for name in "abc"))
        await bench.publish(c=b"2", a=b"2")
        assert await bench.wait(2) == [("a", "modified"), ("c", "modified")]
        assert len({event.time for event in bench.events()}) == 1


async def test_false_events_are_none(bench: Bench) -> None:
    """1-byte steps, truncate and fill, links, modes, times and equal content announce nothing."""
    path = bench.mount / "a"
    path.write_bytes(b"0123456789" * 20)
    (bench.mount / "marker").write_bytes(b"1")
    bench.map("a", "marker")
    async with bench.running():
        with path.open("r+b", buffering=0) as file:
            file.truncate(0)
            for number in range(200):
                file.write(b"%d" % (number % 10))
                await anyio.lowlevel.checkpoint()
        os.link(path, bench.mount / "hard")
        path.chmod(0o640)
        os.utime(path, (1, 1))
        (bench.mount / "new").write_bytes(path.read_bytes())
        (bench.mount / "new").replace(path)
        (bench.mount / "marker").write_bytes(b"2")
        assert await bench.wait(1) == [("marker", "modified")]


async def test_a_slow_writer_is_waited_for(bench: Bench) -> None:
    """A file that is held open half-written is announced once, when it is complete."""
    path = bench.mount / "a"
    path.write_bytes(b"old")
    bench.map("a")
    async with bench.running() as reconciler:
        with path.open("wb", buffering=0) as file:
            file.write(b"ha")
            before = reconciler.scanned_at
            await until(
                lambda: not (reconciler.scanned_at == before or not reconciler.watcher.writers())
            )
            file.write(b"lf")
        assert await bench.wait(1) == [("a", "modified")]
        (event,) = bench.events()
        assert isinstance(event.data, SecretData)
        assert event.data.version == reconciler._reader.fingerprint("a", b"half")


@pytest.mark.parametrize("mode", ["auto", "poll"])
async def test_every_last_state_arrives(bench: Bench, mode: str) -> None:
    """Swaps as fast as they go: whatever is skipped, the end is told; by polling as well."""
    await bench.publish(a=b"0")
    bench.map("a")
    async with bench.running(mode=mode, rescan_interval=0.05 if mode == "poll" else 600) as it:
        for number in range(1, 40):
            await bench.publish(a=b"%d" % number)
        last = it._reader.fingerprint("a", b"39")
        with anyio.fail_after(DEADLINE):
            while it.inventory["a"].version != last:
                await bench.woken.wait()
                bench.woken = anyio.Event()


async def test_a_remount_is_no_removal(bench: Bench) -> None:
    """Deleted and recreated, the mount announces only what differs afterwards."""
    await bench.publish(a=b"1", b=b"1")
    bench.map("a", "b")
    async with bench.running() as reconciler:
        shutil.rmtree(bench.mount)
        await until(lambda: not (reconciler.settled))
        await bench.publish(a=b"1", b=b"2")
        assert await bench.wait(1) == [("b", "modified")]
        await bench.publish(a=b"3")
        assert await bench.wait(2) == [("b", "modified"), ("a", "modified")]


async def test_a_mount_that_appears_above_nested_files_is_found(bench: Bench) -> None:
    """Derived roots follow the file system: generations stay whole though the mount came late."""
    bench.map("db/user", "db/password")
    async with bench.running() as reconciler:
        bench.values = {}
        await bench.lay(File("db/user", b"1"), File("db/password", b"1"))
        await bench.wait(2)
        await bench.lay(File("db/user", b"2"), File("db/password", b"2"))
        changes = await bench.wait(4)
        assert {change for _, change in changes} == {"added", "modified"}
        assert reconciler._reader.roots == (str(bench.mount),)


async def test_the_vault_config_is_followed(bench: Bench) -> None:
    """A new entry, a broken edit that changes nothing, and an entry that goes."""
    await bench.publish(a=b"1", b=b"1")
    bench.map("a")
    async with bench.running() as reconciler:
        bench.map("a", "b")
        assert await bench.wait(1) == [("b", "added")]
        await anyio.Path(bench.vault_config).write_text("{")
        await until(lambda: not (reconciler.vault_config.valid))
        assert set(reconciler.vault_config.entries) == {"a", "b"}
        bench.map("b")
        assert await bench.wait(2) == [("b", "added"), ("a", "removed")]
        told = [e.data for e in bench.events() if isinstance(e.data, VaultConfigData)]
        assert [(item.added, item.removed) for item in told] == [(("b",), ()), ((), ("a",))]


async def test_a_vault_config_written_before_it_is_watched_is_seen(bench: Bench) -> None:
    """Between loading it and watching it there is no hint; it is read again all the same."""
    await bench.publish(a=b"1", b=b"1")
    bench.map("a")
    reconciler = await bench.make()
    bench.map("a", "b")
    try:
        async with anyio.create_task_group() as tasks:
            await reconciler.start()
            tasks.start_soon(reconciler.run)
            assert await bench.wait(1) == [("b", "added")]
            tasks.cancel_scope.cancel()
    finally:
        reconciler.watcher.close()


async def test_cancellation_in_a_pass_tells_what_was_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that is done while the loop is being cancelled is known and told."""
    await bench.publish(a=b"1")
    bench.map("a")
    reconciler = await bench.make()
    await reconciler.start()
    await bench.publish(a=b"2")
    record = bench.ledger.record
    async with anyio.create_task_group() as tasks:

        def slow(*arguments: Any) -> list[Event]:
            events = record(*arguments)
            anyio.from_thread.run_sync(tasks.cancel_scope.cancel)
            return events

        monkeypatch.setattr(bench.ledger, "record", slow)
        tasks.start_soon(reconciler.run)
    reconciler.watcher.close()
    assert bench.changes() == [("a", "modified")]
    assert reconciler.inventory == await anyio.to_thread.run_sync(bench.ledger.inventory)


async def test_a_ledger_that_fails_for_a_while_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass is made again until the commit succeeds; the failure shows in between."""
    await bench.publish(a=b"1")
    bench.map("a")
    record = bench.ledger.record
    failures: list[str | None] = []
    async with bench.running() as reconciler:

        def full(*arguments: Any) -> list[Event]:
            failures.append(reconciler.failure)
            if len(failures) < 3:
                raise StateError("cannot use the ledger: full")
            return record(*arguments)

        monkeypatch.setattr(bench.ledger, "record", full)
        await bench.publish(a=b"2")
        assert await bench.wait(1) == [("a", "modified")]
        assert failures == [None, *["cannot use the ledger: full"] * 2]


async def test_a_reload_while_the_ledger_fails_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass after a reload is made again until the commit succeeds; a start refuses."""
    await bench.publish(a=b"1")
    bench.map("a")
    async with bench.running():
        pass
    await bench.publish(a=b"2")
    record = bench.ledger.record

    def full(*_: Any) -> list[Event]:
        raise StateError("cannot use the ledger: full")

    monkeypatch.setattr(bench.ledger, "record", full)
    reconciler = await bench.make()
    try:
        with pytest.raises(StateError):
            await reconciler.start()
        await reconciler.start("reload")
        assert reconciler.failure == "cannot use the ledger: full"
        monkeypatch.setattr(bench.ledger, "record", record)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reconciler.run)
            assert await bench.wait(1) == [("a", "modified")]
            await until(lambda: reconciler.failure is None)
            tasks.cancel_scope.cancel()
    finally:
        reconciler.watcher.close()


async def test_without_inotify_the_rescan_finds_it_and_inotify_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE at the start: polling, said; later scans arm inotify again."""
    await bench.publish(a=b"1")
    bench.map("a")

    def fail(**_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(watch, "INotify", fail)
        async with bench.running(rescan_interval=0.05) as reconciler:
            assert reconciler.watcher.mode == "poll"
            await bench.publish(a=b"2")
            assert await bench.wait(1) == [("a", "modified")]
            patched.undo()
            await until(lambda: not (reconciler.watcher.degraded is not None))
            await bench.publish(a=b"3")
            await bench.wait(2)


async def test_a_restart_tells_what_changed_meanwhile_and_nothing_else(bench: Bench) -> None:
    """What the ledger knows is compared with the first scan."""
    await bench.publish(a=b"1", b=b"1", c=b"1")
    bench.map("a", "b", "c")
    async with bench.running():
        pass
    bench.values.pop("c")
    await bench.publish(a=b"2")
    async with bench.running():
        assert await bench.wait(2) == [("a", "modified"), ("c", "removed")]


def publish_when_free(bench: Bench, **values: bytes) -> None:
    """Publishes as soon as the publisher is done that caused this pass."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            bench.publish_here(**values)
        except TemporaryError:
            assert time.monotonic() < deadline
        else:
            return


async def test_a_swap_in_the_middle_of_a_pass_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change between a scan and the next wait has left its hint in the queue."""
    await bench.publish(a=b"1")
    bench.map("a")
    async with bench.running():
        record = bench.ledger.record

        def late(*arguments: Any) -> list[Event]:
            monkeypatch.setattr(bench.ledger, "record", record)
            publish_when_free(bench, a=b"3")
            return record(*arguments)

        monkeypatch.setattr(bench.ledger, "record", late)
        await bench.publish(a=b"2")
        await bench.wait(2)
