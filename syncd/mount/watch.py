"""Watching directories: inotify gives hints that a scan is due, and is never taken as the truth.

Traps, and how they are handled:

- A watch on a file ends with the file, so only directories are watched (inotify(7)).
- A mount on top of a watched directory gives no event, but `/proc/self/mountinfo` signals it to
  poll(2) (proc(5)). It signals once: with `EPOLLPRI` the event loop's own poll of this epoll would
  consume the signal, so the edge of `EPOLLIN`, which is always set, is used, as in libmount.
- When the queue overflows, everything is scanned.
- A directory that is reached by two paths has one watch, which stands for both.
- A file that is being written gives `IN_MODIFY`, and `IN_CLOSE_WRITE` at the end. In between it is
  in `writers`, for a bounded time, because truncate(2) gives no `IN_CLOSE_WRITE`. After reading a
  file, `is_written` must be called, and it includes the events that are still in the queue: a slow
  writer's last event can be older than the settle time, without having started this scan.
- Each root arms its own watches from its own thread (`arm`), and adding a watch looks up a path,
  which may never return. So no lock is held meanwhile, and a watch is only removed while nobody
  adds one: it could be the one that is being added, since a directory has only one.
- Instances and watches are limited per user (`EMFILE`, `ENOSPC`), and some sandboxes have none
  (`ENOSYS`). The caller then polls, and every call of `arm` tries inotify again.
"""

from __future__ import annotations

import errno
import os
import select
import time
from threading import Event, Lock
from typing import Final, Literal

import anyio
import msgspec
from inotify_simple import INotify, flags, masks

from syncd.mount.way import DATA_LINK, Watched, follow

WRITER_LIMIT: Final = 10.0
"""Seconds after its last write that a file counts as being written if it was not closed."""

_WAY: Final = (
    flags.ATTRIB
    | masks.MOVE
    | flags.CREATE
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.MASK_ADD
)
"""What happens to names in a directory. Directories above the secrets, such as `/run`, can be busy
ones, so writes to their files are left out. One directory can be both kinds, by two paths: masks
are added (`MASK_ADD`)."""

_FILES: Final = _WAY | flags.MODIFY | flags.CLOSE_WRITE
_OF_ITSELF: Final = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
_WRITER_DONE: Final = flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE
_ABSENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_LIMITS: Final = frozenset((errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSYS))
_MANY: Final = 10_000


class Hint(msgspec.Struct, frozen=True):
    """A reason to scan.

    Attributes:
        reason: `inotify`, or `overflow` when events were lost.
        urgent: True where there is no writer to wait for: a swap, a mount.
        directories: Where something happened; empty where that is unknown, which means anywhere.
        swap: True where all that happened is that an AtomicWriter renamed a new `..data` over the
            old one, so that the way to the files is what it was.
    """

    reason: Literal["inotify", "overflow"]
    urgent: bool
    directories: frozenset[str]
    swap: bool = False

    def merge(self, later: Hint) -> Hint:
        """One hint in place of two."""
        return Hint(
            "overflow" if "overflow" in (self.reason, later.reason) else "inotify",
            self.urgent or later.urgent,
            self.directories | later.directories
            if self.directories and later.directories
            else frozenset(),
            self.swap and later.swap,
        )


class _Watch(msgspec.Struct, frozen=True, gc=False):
    """One directory as one owner watches it."""

    directory: str
    ways: frozenset[str]
    files: frozenset[str]


_NO_NAMES: Final[frozenset[str]] = frozenset()


class Watcher:
    """Watches sets of directories, which `arm` may change at any time.

    The modes `auto` and `inotify` use inotify where it works, `poll` does not.
    """

    def __init__(self, mode: Literal["auto", "inotify", "poll"] = "auto") -> None:
        self._wanted = mode != "poll"
        self._inotify: INotify | None = None
        self._armed: dict[str, dict[int, list[_Watch]]] = {}
        self._table: dict[int, list[_Watch]] = {}
        self._failed: dict[str, str] = {}
        self._arming = 0
        self._lock = Lock()
        self._modified: dict[str, float] = {}
        self._mounts: int | None = None
        self._wake: int | None = None
        self._epoll: select.epoll | None = None
        self._kept: Hint | None = None
        self._unusable: str | None = None
        self._opened = Event()
        self._is_waited_for = False
        self._closed = False

    @property
    def degraded(self) -> str | None:
        """Why inotify cannot be used now although it is wanted, or None."""
        return self._unusable or next(iter(self._failed.values()), None)

    @property
    def mode(self) -> Literal["inotify", "poll"]:
        """How changes are noticed now."""
        return "inotify" if self._inotify is not None and self.degraded is None else "poll"

    def arm(self, watched: Watched, owner: str = "") -> dict[str, str]:
        """Watches these directories for an owner, and no others. Blocks.

        May be called from any thread, by one thread for each owner. A directory that was replaced
        by another one of the same name gets a new watch. A lack of watches shows in `degraded`.

        Returns:
            The directories that exist and cannot be watched, each with the reason.
        """
        with self._lock:
            inotify = None if self._closed else self._open()
            if inotify is None:
                return {}
            self._arming += 1
        # For a directory that is watched already, `inotify_add_watch` returns that watch. So
        # arming the same directories again loses no event, and only a directory that was replaced
        # gets a new one. Which watches are no longer needed is known after that, by their number.
        armed: dict[int, list[_Watch]] = {}
        failed, blind = None, {}
        for directory in watched.directories():
            files = watched.files.get(directory, _NO_NAMES)
            try:
                descriptor = inotify.add_watch(directory, _FILES if files else _WAY)
            except OSError as error:
                if error.errno in _LIMITS:
                    failed = _explain(error)
                elif error.errno not in _ABSENT:
                    blind[directory] = error.strerror or "not possible"
                continue
            watch = _Watch(directory, watched.ways.get(directory, _NO_NAMES), files)
            armed.setdefault(descriptor, []).append(watch)
        with self._lock:
            self._arming -= 1
            self._failed.pop(owner, None)
            if failed is not None:
                self._failed[owner] = failed
            self._armed[owner] = armed
            self._tabulate(inotify)
        return blind

    def disarm(self, owner: str) -> None:
        """Ends an owner's watches."""
        with self._lock:
            self._failed.pop(owner, None)
            if self._armed.pop(owner, None) and self._inotify is not None:
                self._tabulate(self._inotify)

    def _tabulate(self, inotify: INotify) -> None:
        table: dict[int, list[_Watch]] = {}
        for armed in self._armed.values():
            for descriptor, watches in armed.items():
                table[descriptor] = table.get(descriptor, []) + watches
        unused = self._table.keys() - table.keys()
        if unused and self._arming:
            # one of these may be in use in a moment
            table.update((descriptor, []) for descriptor in unused)
            unused = set()
        self._table = table
        for descriptor in unused:
            try:
                inotify.rm_watch(descriptor)
            except OSError:
                continue  # the kernel removed it together with its directory

    def _open(self) -> INotify | None:
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
            if self._wake is None:
                self._wake = _open_wake(self._epoll)
                self._opened.set()
            if self._mounts is None:
                self._mounts = _open_mounts(self._epoll)
            if self._wanted and self._inotify is None:
                self._inotify = _open_inotify(self._epoll)
        except OSError as error:
            self._unusable = _explain(error) if self._wanted else None
            return None
        self._unusable = None
        return self._inotify

    def is_written(self, path: str) -> bool:
        """Whether a file, or the file that a symlink leads to, is being written.

        This takes all events until now. Their hint is kept for `next_hint` or `wait`. May be called
        from any thread.
        """
        with self._lock:
            hint = None if self._epoll is None else self._drain(self._epoll.poll(0))
            if hint is not None:
                self._kept = hint if self._kept is None else self._kept.merge(hint)
                if self._wake is not None:
                    os.eventfd_write(self._wake, 1)
            if not self._modified:
                return False
            modified = dict(self._modified)
        limit = time.monotonic() - WRITER_LIMIT
        paths = (path, follow(path, Watched()))
        return any(modified.get(name, limit) > limit for name in paths)

    async def next_hint(self) -> Hint:
        """Waits for a hint."""
        while True:
            with self._lock:
                hint = None if self._epoll is None else self._take(self._epoll.poll(0))
            if hint is not None:
                return hint
            if self._epoll is None:
                await anyio.sleep_forever()
            else:
                await anyio.wait_readable(self._epoll.fileno())

    def wait(self) -> Hint | None:
        """Waits for a hint, in a thread; None when the watcher is closed.

        One thread may wait at a time, and no task for `next_hint` meanwhile.
        """
        self._opened.wait()
        ready: list[tuple[int, int]] | None = None
        while True:
            with self._lock:
                epoll = self._epoll
                if self._closed or epoll is None:
                    self._is_waited_for = False
                    self._close()
                    return None
                hint = self._take(epoll.poll(0) if ready is None else ready)
                self._is_waited_for = hint is None
            if hint is not None:
                return hint
            ready = epoll.poll()  # takes the signal of the mount table, so it must be looked at

    def _take(self, ready: list[tuple[int, int]]) -> Hint | None:
        """The hint of what is ready, for the one who waits, with what was kept for it."""
        if self._wake is not None and any(descriptor == self._wake for descriptor, _ in ready):
            os.eventfd_read(self._wake)
        hint, kept, self._kept = self._drain(ready), self._kept, None
        return kept.merge(hint) if kept and hint else kept or hint

    def _drain(self, ready: list[tuple[int, int]]) -> Hint | None:
        directories: set[str] = set()
        urgent = anywhere = overflow = False
        swap = True
        for descriptor, _ in ready:
            if descriptor == self._mounts:
                urgent = anywhere = True
                continue
            if descriptor == self._wake or self._inotify is None:
                continue
            for event in self._inotify.read(timeout=0):
                if event.mask & flags.Q_OVERFLOW:
                    overflow = urgent = anywhere = True
                    self._modified.clear()
                    continue
                for watch in self._table.get(event.wd, ()):
                    verdict = self._judge(watch, event.mask, event.name)
                    if verdict is not None:
                        urgent |= verdict
                        swap &= event.name == DATA_LINK and bool(event.mask & flags.MOVED_TO)
                        directories.add(watch.directory)
        if not (anywhere or directories):
            return None
        where = frozenset() if anywhere else frozenset(directories)
        return Hint("overflow" if overflow else "inotify", urgent, where, swap and not anywhere)

    def _judge(self, watch: _Watch, mask: int, name: str) -> bool | None:
        """Whether an event is urgent; None where it needs no scan."""
        if mask & _OF_ITSELF:
            for path in [p for p in self._modified if os.path.dirname(p) == watch.directory]:
                del self._modified[path]
            return True
        if name == DATA_LINK:
            return True if name in watch.ways and not mask & flags.ATTRIB else None
        if name not in watch.files:
            return True if name in watch.ways else None
        if not mask & flags.ISDIR:
            path = f"{watch.directory}/{name}"
            if mask & _WRITER_DONE:
                self._modified.pop(path, None)
            elif mask & flags.MODIFY and len(self._modified) < _MANY:
                self._modified[path] = time.monotonic()
        return False

    def close(self) -> None:
        """Closes all descriptors, or has it done by the thread that waits."""
        with self._lock:
            self._closed = True
            self._opened.set()
            if self._is_waited_for and self._wake is not None:
                os.eventfd_write(self._wake, 1)
            else:
                self._close()

    def _close(self) -> None:
        for closable in (self._epoll, self._inotify):
            if closable is not None:
                closable.close()
        for descriptor in (self._mounts, self._wake):
            if descriptor is not None:
                os.close(descriptor)
        self._epoll = self._inotify = self._mounts = self._wake = self._kept = None
        self._armed, self._table = {}, {}


def _open_wake(epoll: select.epoll) -> int:
    """Opens and watches what wakes `next_hint` when another thread has kept a hint for it."""
    wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        epoll.register(wake, select.EPOLLIN)
    except OSError:
        os.close(wake)
        raise
    return wake


def _open_mounts(epoll: select.epoll) -> int | None:
    """Opens and watches the mount table; None where that fails, and the rescan finds mounts."""
    try:
        mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        epoll.register(mounts, select.EPOLLIN | select.EPOLLET)
        epoll.poll(0)  # consumes the edge that registering gives
    except OSError:
        os.close(mounts)
        return None
    return mounts


def _open_inotify(epoll: select.epoll) -> INotify:
    inotify = INotify(nonblocking=True)
    try:
        epoll.register(inotify.fileno(), select.EPOLLIN)
    except OSError:
        inotify.close()
        raise
    return inotify


def _explain(error: OSError) -> str:
    remedies = {
        errno.EMFILE: "raise fs.inotify.max_user_instances or the limit of open files",
        errno.ENOSPC: "raise fs.inotify.max_user_watches",
        errno.ENOSYS: "set watch.mode to poll, since this sandbox has no inotify",
    }
    reason = error.strerror or os.strerror(error.errno or 0)
    remedy = remedies.get(error.errno or 0)
    return f"inotify: {reason}; {remedy}" if remedy else f"inotify: {reason}"
