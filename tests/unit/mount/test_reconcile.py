"""The loop over real files, real inotify and a real ledger: nothing lost, nothing false."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from support.pem import certificate
from support.waiting import DEADLINE, until
from support.world import World

from syncd.config.settings import Watch
from syncd.core.errors import StateError
from syncd.core.event_data import SecretData, VaultConfigData
from syncd.core.model import Grant, State
from syncd.ledger.ledger import Ledger
from syncd.ledger.state_dir import StateDir
from syncd.mount import passes, vault_config_file, watch
from syncd.mount.contents import Contents
from syncd.mount.lane import Lane
from syncd.mount.reconcile import Reconciler
from syncd.mount.root_scan import RootScan
from syncd.mount.snapshot import Snapshot
from syncd.mount.vault_config_file import VaultConfigFile
from syncd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from syncd.core.events import Commit, Event
    from syncd.core.model import Entry
    from syncd.mount.lane import Errand
    from syncd.mount.watch import Hint

NEVER = 3600.0


class Bench(World):
    """A world, a ledger, and a reconciler over them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        os.mkdir(self.mount)
        self.state_dir = StateDir.open(self.state)
        self.ledger = Ledger.open(self.state_dir, "boot")
        self.commits: list[Commit] = []
        self.posted: list[Commit] = []
        self.threads: set[int] = set()
        self.woken = anyio.Event()

    def close(self) -> None:
        self.ledger.close()
        self.state_dir.close()

    async def swap(self, values: Mapping[str, bytes] | None = None, /, **named: bytes) -> None:
        await anyio.to_thread.run_sync(lambda: self.publish(values, **named))

    def announced(self) -> list[Event]:
        return [event for commit in self.commits for event in commit.events]

    def changes(self) -> list[tuple[str, str]]:
        return [
            (event.data.secret, event.data.change.value)
            for event in self.announced()
            if isinstance(event.data, SecretData)
        ]

    async def wait(self, count: int) -> list[tuple[str, str]]:
        """All changes of secrets, once there are that many."""
        with anyio.fail_after(DEADLINE):
            while len(self.changes()) < count:
                await self.woken.wait()
                self.woken = anyio.Event()
        return self.changes()

    def _post(self, commit: Commit) -> None:
        assert commit not in self.commits
        self.posted.append(commit)
        self.threads.add(threading.get_ident())

    def _committed(self, commit: Commit) -> None:
        self.commits.append(commit)
        self.woken.set()

    async def make(self, **settings: Any) -> Reconciler:
        self.woken = anyio.Event()
        defaults = {"settle": 0.02, "rescan_interval": 600.0, "remount_grace": 600.0}
        wanted = Watch(**{**defaults, **settings})
        file = VaultConfigFile(self.vault_config, wanted.settle)
        await file.load()
        self.reconciler = Reconciler(
            wanted,
            file,
            key=self.state_dir.keys.current,
            ledger=self.ledger,
            consumers={"hook": Grant()},
            metrics=Metrics(),
            post=self._post,
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


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


async def test_only_what_changed_is_told_and_a_swap_as_a_whole(bench: Bench) -> None:
    """The baseline is quiet; one swap is one commit of one time; the same content is nothing."""
    await bench.swap(a=b"1", b=b"1", c=b"1")
    bench.map("a", "b", "c")
    async with bench.running():
        await bench.swap()
        await bench.swap(c=b"2", a=b"2")
        assert await bench.wait(2) == [("a", "modified"), ("c", "modified")]
        assert len({event.time for event in bench.announced()}) == 1


async def test_commits_are_posted_before_they_are_announced(bench: Bench) -> None:
    """Those of a root, by the thread that made them, and those of the vault config."""
    await bench.swap(a=b"1", b=b"1")
    bench.map("a")
    async with bench.running():
        await bench.swap(a=b"2")
        await bench.wait(1)
        bench.map("a", "b")
        await bench.wait(2)
    assert bench.threads.isdisjoint({threading.get_ident()})
    assert bench.posted == [commit for commit in bench.commits if commit.events]


async def test_false_events_are_none(bench: Bench) -> None:
    """1-byte steps, truncate and fill, links, modes, times and equal content announce nothing."""
    path, marker = Path(bench.mount) / "a", Path(bench.mount) / "marker"
    path.write_bytes(b"0123456789" * 20)
    marker.write_bytes(b"1")
    bench.map("a", "marker")
    async with bench.running():
        with path.open("r+b", buffering=0) as file:
            file.truncate(0)
            for number in range(200):
                file.write(b"%d" % (number % 10))
                await anyio.lowlevel.checkpoint()
        os.link(path, path.parent / "hard")
        path.chmod(0o640)
        os.utime(path, (1, 1))
        (path.parent / "new").write_bytes(path.read_bytes())
        (path.parent / "new").replace(path)
        marker.write_bytes(b"2")
        assert await bench.wait(1) == [("marker", "modified")]


async def test_a_slow_writer_is_waited_for(bench: Bench) -> None:
    """A file that is held open half-written is announced once, when it is complete."""
    path = Path(bench.mount) / "a"
    path.write_bytes(b"old")
    bench.map("a")
    async with bench.running() as reconciler:
        await until(lambda: bench.mount in reconciler.watcher._armed)
        with path.open("wb", buffering=0) as file:
            file.write(b"ha")
            before = reconciler.scanned_at
            await until(
                lambda: not (reconciler.scanned_at == before or not reconciler.watcher._modified)
            )
            file.write(b"lf")
        assert await bench.wait(1) == [("a", "modified")]
        (event,) = bench.announced()
        assert isinstance(event.data, SecretData)
        assert event.data.version == reconciler._reader.fingerprint("a", b"half")


@pytest.mark.parametrize("mode", ["auto", "poll"])
async def test_every_last_state_arrives(bench: Bench, mode: str) -> None:
    """Swaps as fast as they go: whatever is skipped, the end is told; by polling as well."""
    await bench.swap(a=b"0")
    bench.map("a")
    async with bench.running(mode=mode, rescan_interval=0.05 if mode == "poll" else 600) as it:
        for number in range(1, 40):
            await bench.swap(a=b"%d" % number)
        last = it._reader.fingerprint("a", b"39")
        with anyio.fail_after(DEADLINE):
            while it.inventory["a"].version != last:
                await bench.woken.wait()
                bench.woken = anyio.Event()


async def test_a_remount_is_no_removal(bench: Bench) -> None:
    """Deleted and recreated, the mount announces only what differs afterwards."""
    await bench.swap(a=b"1", b=b"1")
    bench.map("a", "b")
    async with bench.running() as reconciler:
        shutil.rmtree(bench.mount)
        await until(lambda: not (reconciler.settled))
        await bench.swap(a=b"1", b=b"2")
        assert await bench.wait(1) == [("b", "modified")]
        await bench.swap(a=b"3")
        assert await bench.wait(2) == [("b", "modified"), ("a", "modified")]


async def test_a_mount_that_is_replaced_between_two_swaps_is_followed(bench: Bench) -> None:
    """A swap alone is read under the watches that are there; another directory gets new ones."""
    await bench.swap(a=b"1")
    bench.map("a")
    elsewhere = World(Path(bench.mount).parent / "elsewhere")
    os.mkdir(elsewhere.directory)
    async with bench.running():
        for number in (1, 2):
            await bench.swap(a=b"swapped %d" % number)
            await bench.wait(number)
        elsewhere.publish(a=b"another directory")
        os.rename(bench.mount, f"{bench.mount}.old")
        os.rename(elsewhere.mount, bench.mount)
        await bench.wait(3)
        await bench.swap(a=b"swapped there")
        assert await bench.wait(4) == [("a", "modified")] * 4


async def test_a_mount_that_appears_above_nested_files_is_found(bench: Bench) -> None:
    """Derived roots follow the file system: generations stay whole though the mount came late."""
    bench.map("db/user", "db/password")
    async with bench.running() as reconciler:
        await bench.swap({"db/user": b"1", "db/password": b"1"})
        await bench.wait(2)
        await bench.swap({"db/user": b"2", "db/password": b"2"})
        changes = await bench.wait(4)
        assert {change for _, change in changes} == {"added", "modified"}
        assert list(reconciler._reader._roots) == [bench.mount]


async def test_the_vault_config_is_followed(bench: Bench) -> None:
    """A new entry, a broken edit that changes nothing, and an entry that goes."""
    await bench.swap(a=b"1", b=b"1")
    bench.map("a")
    async with bench.running() as reconciler:
        bench.map("a", "b")
        assert await bench.wait(1) == [("b", "added")]
        await anyio.Path(bench.vault_config).write_text("{")
        await until(lambda: not (reconciler.vault_config.valid))
        assert set(reconciler.vault_config.entries) == {"a", "b"}
        bench.map("b")
        assert await bench.wait(2) == [("b", "added"), ("a", "removed")]
        told = [e.data for e in bench.announced() if isinstance(e.data, VaultConfigData)]
        assert [(item.added, item.removed) for item in told] == [(("b",), ()), ((), ("a",))]


async def test_a_vault_config_written_before_it_is_watched_is_seen(bench: Bench) -> None:
    """Between loading it and watching it there is no hint; it is read again all the same."""
    await bench.swap(a=b"1", b=b"1")
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


async def test_a_vault_config_written_while_it_is_first_watched_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint can come before the reading is known that armed the watch for it."""
    await bench.swap(a=b"1", b=b"1")
    bench.map("a")
    reconciler_notify, read = Reconciler._notify, vault_config_file.read_vault_config
    heard, readings = threading.Event(), []

    def notify(reconciler: Reconciler, hint: Hint) -> None:
        reconciler_notify(reconciler, hint)
        heard.set()

    def reading(path: str) -> tuple[bytes, os.stat_result]:
        found = read(path)
        readings.append(found)
        if len(readings) == 2:
            bench.map("a", "b")
            assert heard.wait(DEADLINE)
        return found

    monkeypatch.setattr(Reconciler, "_notify", notify)
    monkeypatch.setattr(vault_config_file, "read_vault_config", reading)
    async with bench.running():
        assert await bench.wait(1) == [("b", "added")]


async def test_cancellation_in_a_pass_tells_what_was_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that is done while the loop is being cancelled is known and told."""
    await bench.swap(a=b"1")
    bench.map("a")
    reconciler = await bench.make()
    await reconciler.start()
    await bench.swap(a=b"2")
    record, token = bench.ledger.record, anyio.lowlevel.current_token()
    async with anyio.create_task_group() as tasks:

        def slow(*arguments: Any, **more: Any) -> list[Event]:
            events = record(*arguments, **more)
            anyio.from_thread.run_sync(tasks.cancel_scope.cancel, token=token)
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
    await bench.swap(a=b"1")
    bench.map("a")
    record = bench.ledger.record
    failures: list[str | None] = []
    async with bench.running() as reconciler:

        def full(*arguments: Any, **more: Any) -> list[Event]:
            failures.append(reconciler.failure)
            if len(failures) < 3:
                raise StateError("cannot use the ledger: full")
            return record(*arguments, **more)

        monkeypatch.setattr(bench.ledger, "record", full)
        await bench.swap(a=b"2")
        assert await bench.wait(1) == [("a", "modified")]
        assert failures == [None, *["cannot use the ledger: full"] * 2]


async def test_a_reload_while_the_ledger_fails_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass after a reload is made again until the commit succeeds; a start refuses."""
    await bench.swap(a=b"1")
    bench.map("a")
    async with bench.running():
        pass
    await bench.swap(a=b"2")
    record = bench.ledger.record

    def full(*_: Any, **__: Any) -> list[Event]:
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
    await bench.swap(a=b"1")
    bench.map("a")

    def fail(**_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(watch, "INotify", fail)
        async with bench.running(rescan_interval=0.05) as reconciler:
            assert reconciler.watcher.mode == "poll"
            await bench.swap(a=b"2")
            assert await bench.wait(1) == [("a", "modified")]
            patched.undo()
            await until(lambda: not (reconciler.watcher.degraded is not None))
            await bench.swap(a=b"3")
            await bench.wait(2)


async def test_a_restart_tells_what_changed_meanwhile_and_nothing_else(bench: Bench) -> None:
    """What the ledger knows is compared with the first scan."""
    await bench.swap(a=b"1", b=b"1", c=b"1")
    bench.map("a", "b", "c")
    async with bench.running():
        pass
    bench.values.pop("c")
    await bench.swap(a=b"2")
    async with bench.running():
        assert await bench.wait(2) == [("a", "modified"), ("c", "removed")]


async def test_a_swap_in_the_middle_of_a_pass_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change between a scan and the next wait has left its hint in the queue."""
    await bench.swap(a=b"1")
    bench.map("a")
    async with bench.running():
        record = bench.ledger.record

        def late(*arguments: Any, **more: Any) -> list[Event]:
            monkeypatch.setattr(bench.ledger, "record", record)
            bench.publish(a=b"3")
            return record(*arguments, **more)

        monkeypatch.setattr(bench.ledger, "record", late)
        await bench.swap(a=b"2")
        await bench.wait(2)


async def test_a_root_that_does_not_answer_is_unreadable_until_it_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its versions stay, the other root goes on, and what the held scan saw is dropped."""
    other = Path(bench.directory) / "other"
    other.mkdir()
    (other / "b").write_bytes(b"1")
    await bench.swap(a=b"1")
    bench.map("a", paths={"b": str(other / "b")})
    held, run_scan = threading.Event(), RootScan.run
    monkeypatch.setattr(passes, "LIMIT", 0.05)
    async with bench.running() as reconciler:
        await until(lambda: bench.mount in reconciler.watcher._armed)
        before = reconciler.inventory["a"]

        def hang(scan: RootScan) -> Snapshot:
            found = run_scan(scan)
            if scan._root.path == bench.mount:
                held.wait(DEADLINE)
            return found

        monkeypatch.setattr(RootScan, "run", hang)
        await bench.swap(a=b"2")
        await until(lambda: reconciler.unreadable)
        await until(lambda: reconciler.inventory["a"].state is State.UNREADABLE)
        assert reconciler.inventory["a"].version == before.version
        assert reconciler.unreadable == {bench.mount: f"the mount {bench.mount} does not answer"}
        (other / "b").write_bytes(b"2")
        assert await bench.wait(1) == [("b", "modified")]
        await bench.swap(a=b"3")
        held.set()
        assert await bench.wait(2) == [("b", "modified"), ("a", "modified")]
        assert reconciler.inventory["a"].version == reconciler._reader.fingerprint("a", b"3")
        await until(lambda: not reconciler.unreadable)


async def test_a_ledger_that_does_not_answer_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass waits for it, and what it commits in the end is delivered."""
    await bench.swap(a=b"1")
    bench.map("a")
    held, record = threading.Event(), bench.ledger.record
    async with bench.running() as reconciler:

        def hang(*arguments: Any, **more: Any) -> list[Event]:
            held.wait(DEADLINE)
            return record(*arguments, **more)

        monkeypatch.setattr(passes, "LIMIT", 0.05)
        monkeypatch.setattr(bench.ledger, "record", hang)
        await bench.swap(a=b"2")
        await until(lambda: reconciler.failure is not None)
        assert "does not answer" in (reconciler.failure or "")
        held.set()
        assert await bench.wait(1) == [("a", "modified")]
        await until(lambda: reconciler.failure is None)


async def test_a_scan_for_an_older_vault_config_is_void(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret whose path changes while it is scanned gets no version from its old path."""
    other = Path(bench.directory) / "other"
    other.mkdir()
    (other / "a").write_bytes(b"same")
    (Path(bench.mount) / "a").write_bytes(b"same")
    bench.map("a")
    scanning, held, run_scan = threading.Event(), threading.Event(), RootScan.run
    async with bench.running() as reconciler:
        await until(lambda: bench.mount in reconciler.watcher._armed)

        def slow(scan: RootScan) -> Snapshot:
            found = run_scan(scan)
            if scan._root.path == bench.mount and not held.is_set():
                scanning.set()
                held.wait(DEADLINE)
            return found

        monkeypatch.setattr(RootScan, "run", slow)
        (Path(bench.mount) / "a").write_bytes(b"old place")
        await until(scanning.is_set)
        bench.map(paths={"a": str(other / "a")})
        await until(lambda: reconciler.inventory["a"].entry.path == str(other / "a"))
        held.set()
        (other / "a").write_bytes(b"new place")
        assert await bench.wait(1) == [("a", "modified")]
        expected = reconciler._reader.fingerprint("a", b"new place")
        assert reconciler.inventory["a"].version == expected


async def test_a_root_and_a_ledger_that_fail_together_keep_one_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that is held is not begun again, although what it means cannot be recorded."""
    await bench.swap(a=b"1")
    bench.map("a")
    held, scans = threading.Event(), 0
    async with bench.running() as reconciler:
        await until(lambda: bench.mount in reconciler.watcher._armed)

        def hang(scan: RootScan) -> Snapshot:
            nonlocal scans
            scans += 1
            held.wait(DEADLINE)
            return Snapshot()

        def full(*_: Any, **__: Any) -> list[Event]:
            raise StateError("cannot use the ledger: full")

        with monkeypatch.context() as patched:
            patched.setattr(passes, "LIMIT", 0.05)
            patched.setattr(RootScan, "run", hang)
            patched.setattr(bench.ledger, "record", full)
            await bench.swap(a=b"2")
            await until(lambda: reconciler.unreadable)
            await until(lambda: reconciler.failure is not None)
            bench.map("a", "none")  # one more thing that cannot be recorded, and is tried again
            await until(lambda: "none" in reconciler.vault_config.entries)
            await bench.swap(a=b"3")
            assert scans == 1
        held.set()
        await until(
            lambda: reconciler.inventory["a"].version == reconciler._reader.fingerprint("a", b"3")
        )


async def test_certificates_are_judged_with_the_commit(bench: Bench) -> None:
    """In a thread, and not when someone asks: with 10,000 of them that would take long."""
    judged: list[bool] = []
    judge = Contents.judge

    def recording(self: Contents, entries: Mapping[str, Entry], now: float) -> None:
        judged.append(threading.current_thread() is threading.main_thread())
        judge(self, entries, now)

    bench.publish(a=certificate(not_after=4e9), b=b"one")
    bench.map("a", "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contents, "judge", recording)
        async with bench.running() as reconciler:
            assert reconciler.contents.not_after == {"a": 4e9}
            await bench.swap(b=b"two")
            await bench.wait(1)
            await bench.swap(a=certificate(1, not_after=1e9))
            await until(lambda: reconciler.contents.not_after == {"a": 1e9})
            assert "expired" in reconciler.contents.problems["a"]
    assert judged == [False, False]


class TestASwapOfASmallRoot:
    """It is looked at by the thread that notices it; the loop hears of the commit."""

    @pytest.fixture(autouse=True)
    def errands(self, monkeypatch: pytest.MonkeyPatch) -> list[Errand]:
        begun: list[Errand] = []
        take = Lane.take

        def noted(lane: Lane, hint: Hint) -> Errand | None:
            errand = take(lane, hint)
            if errand is not None:
                begun.append(errand)
            return errand

        monkeypatch.setattr(Lane, "take", noted)
        return begun

    async def ready(self, reconciler: Reconciler) -> None:
        lanes = reconciler._lanes.values()
        await until(lambda: all(it.errand is None and it.schedule.is_open for it in lanes))

    async def test_is_announced_once(self, bench: Bench, errands: list[Errand]) -> None:
        """However many follow each other."""
        await bench.swap(a=b"0", b=b"0")
        bench.map("a", "b")
        async with bench.running() as reconciler:
            for number in range(1, 6):
                await self.ready(reconciler)
                await bench.swap(a=b"%d" % number)
                assert await bench.wait(number) == [("a", "modified")] * number
            await self.ready(reconciler)
            assert len(bench.commits) == 6  # with the baseline
            assert len(errands) == 5

    async def test_is_tried_again_when_the_ledger_fails(
        self, bench: Bench, errands: list[Errand], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As any pass."""
        await bench.swap(a=b"1")
        bench.map("a")
        record, failed = bench.ledger.record, threading.Event()

        def fail(*arguments: Any, **more: Any) -> list[Event]:
            if not failed.is_set():
                failed.set()
                raise StateError("cannot use the ledger", "full")
            return record(*arguments, **more)

        async with bench.running() as reconciler:
            await self.ready(reconciler)
            monkeypatch.setattr(bench.ledger, "record", fail)
            await bench.swap(a=b"2")
            assert await bench.wait(1) == [("a", "modified")]
            assert failed.is_set()
            assert errands
            await until(lambda: reconciler.failure is None)

    @pytest.mark.parametrize("method", ["run", "record"])
    async def test_is_known_when_the_daemon_stops_meanwhile(
        self, bench: Bench, errands: list[Errand], monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """What is being committed is announced; a scan is given up."""
        await bench.swap(a=b"1")
        bench.map("a")
        held, reached = threading.Event(), threading.Event()
        where: Any = RootScan if method == "run" else bench.ledger
        real = getattr(where, method)

        def hang(*arguments: Any, **more: Any) -> object:
            reached.set()
            held.wait(DEADLINE)
            return real(*arguments, **more)

        monkeypatch.setattr("syncd.mount.attendant.SLOW", NEVER)  # the lane's task must not follow
        async with bench.running() as reconciler:
            await self.ready(reconciler)
            monkeypatch.setattr(where, method, hang)
            await bench.swap(a=b"2")
            await until(reached.is_set)
            if method == "record":  # which the stop waits for
                threading.Timer(0.05, held.set).start()
        held.set()
        assert len(errands) == 1
        errands[0].future.exception(DEADLINE)
        assert bench.changes() == ([("a", "modified")] if method == "record" else [])
        stored = await anyio.to_thread.run_sync(bench.ledger.inventory)
        assert reconciler.inventory == stored

    async def test_is_followed_by_the_turn_that_came_meanwhile(
        self, bench: Bench, errands: list[Errand], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The lane's task follows the look, which may have begun too early, and has its own."""
        await bench.swap(a=b"1")
        bench.map("a")
        held, scans, run_scan = threading.Event(), [0], RootScan.run

        def hang(scan: RootScan) -> Snapshot:
            found = run_scan(scan)
            scans[0] += 1
            held.wait(DEADLINE)
            return found

        monkeypatch.setattr("syncd.mount.attendant.SLOW", NEVER)
        async with bench.running() as reconciler:
            await self.ready(reconciler)
            monkeypatch.setattr(RootScan, "run", hang)
            await bench.swap(a=b"2")
            await until(lambda: scans[0])
            reconciler.use_key(bench.state_dir.keys.current, ())
            await until(lambda: reconciler._lanes[bench.mount].errand is None)
            held.set()
            assert await bench.wait(1) == [("a", "modified")]
            await until(lambda: scans[0] == 2)
            assert len(errands) == 1
