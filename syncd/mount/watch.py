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
- Instances and watches are limited per user (`EMFILE`, `ENOSPC`), and some sandboxes have none
  (`ENOSYS`). The caller then polls, and every call of `arm` tries inotify again.
"""

from __future__ import annotations

import errno
import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import anyio
from inotify_simple import INotify, flags

from syncd.mount.roots import DATA_LINK

if TYPE_CHECKING:
    from collections.abc import Mapping

WRITER_LIMIT: Final = 10.0
"""Seconds after its last write that a file counts as being written if it was not closed."""

_MASK: Final = (
    flags.MODIFY
    | flags.ATTRIB
    | flags.CLOSE_WRITE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.CREATE
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_OF_ITSELF: Final = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
_WRITER_DONE: Final = flags.CLOSE_WRITE | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE
_ABSENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP))
_MANY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Hint:
    """A reason to scan.

    Attributes:
        reason: `inotify`, or `overflow` when events were lost.
        urgent: True where there is no writer to wait for: a swap, a mount.
        directories: Where something happened; empty where that is unknown, which means anywhere.
    """

    reason: Literal["inotify", "overflow"]
    urgent: bool
    directories: frozenset[str]

    def merge(self, later: Hint) -> Hint:
        """One hint in place of two."""
        return Hint(
            "overflow" if "overflow" in (self.reason, later.reason) else "inotify",
            self.urgent or later.urgent,
            self.directories | later.directories
            if self.directories and later.directories
            else frozenset(),
        )


_Table = dict[int, list[tuple[str, frozenset[str] | None]]]


class Watcher:
    """Watches a set of directories that `arm` may change at any time.

    The modes `auto` and `inotify` use inotify where it works, `poll` does not.
    """

    def __init__(self, mode: Literal["auto", "inotify", "poll"] = "auto") -> None:
        self._wanted = mode != "poll"
        self._inotify: INotify | None = None
        self._table: _Table = {}
        self._modified: dict[str, float] = {}
        self._mounts: int | None = None
        self._epoll: select.epoll | None = None
        self._kept: Hint | None = None
        self.degraded: str | None = None
        """Why inotify cannot be used now although it is wanted, or None."""

    @property
    def mode(self) -> Literal["inotify", "poll"]:
        """How changes are noticed now."""
        return "inotify" if self._inotify is not None and self.degraded is None else "poll"

    def arm(self, watch: Mapping[str, frozenset[str] | None]) -> None:
        """Watches these directories and no others; may be called from a worker thread.

        A directory that was replaced by another one of the same name gets a new watch. A directory
        that cannot be watched shows in `degraded`. For each directory only some names matter, or
        all (None).
        """
        self._open()
        if self._inotify is None:
            return
        # For a directory that is watched already, `inotify_add_watch` returns that watch. So
        # arming the same directories again loses no event, and only a directory that was replaced
        # gets a new one. Which watches are no longer needed is known after that, by their number.
        table: _Table = {}
        degraded = None
        for directory, names in watch.items():
            try:
                descriptor = self._inotify.add_watch(directory, _MASK)
                table.setdefault(descriptor, []).append((directory, names))
            except OSError as error:
                if error.errno not in _ABSENT:
                    degraded = _explain(error)
        gone = self._table.keys() - table.keys()
        self._table = table
        for descriptor in gone:
            try:
                self._inotify.rm_watch(descriptor)
            except OSError:
                continue  # the kernel removed it together with its directory
        self.degraded = degraded

    def _open(self) -> None:
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
            if self._mounts is None:
                self._mounts = _open_mounts(self._epoll)
            if self._wanted and self._inotify is None:
                self._inotify = _open_inotify(self._epoll)
        except OSError as error:
            if self._wanted:
                self.degraded = _explain(error)

    def is_written(self, path: str) -> bool:
        """Whether a file, or the file that a symlink leads to, is being written.

        This takes all events until now. Their hint is kept for the next `next_hint`. May be called
        from a worker thread while no `next_hint` is waiting.
        """
        hint = None if self._epoll is None else self._drain(self._epoll)
        if hint is not None:
            self._kept = hint if self._kept is None else self._kept.merge(hint)
        if not self._modified:
            return False
        limit = time.monotonic() - WRITER_LIMIT
        paths = (path, os.path.realpath(path))
        return any(self._modified.get(name, limit) > limit for name in paths)

    async def next_hint(self) -> Hint:
        """Waits for a hint."""
        kept, self._kept = self._kept, None
        if kept is not None:
            return kept
        while True:
            if self._epoll is None:
                await anyio.sleep_forever()
                continue
            await anyio.wait_readable(self._epoll.fileno())
            hint = self._drain(self._epoll)
            if hint is not None:
                return hint

    def _drain(self, epoll: select.epoll) -> Hint | None:
        directories: set[str] = set()
        urgent = anywhere = overflow = False
        for descriptor, _ in epoll.poll(0):
            if descriptor == self._mounts:
                urgent = anywhere = True
                continue
            if self._inotify is None:
                continue
            for event in self._inotify.read(timeout=0):
                if event.mask & flags.Q_OVERFLOW:
                    overflow = urgent = anywhere = True
                    self._modified.clear()
                    continue
                for directory, names in self._table.get(event.wd, ()):
                    verdict = self._judge(directory, names, event.mask, event.name)
                    if verdict is not None:
                        urgent |= verdict
                        directories.add(directory)
        if not (anywhere or directories):
            return None
        where = frozenset() if anywhere else frozenset(directories)
        return Hint("overflow" if overflow else "inotify", urgent, where)

    def _judge(
        self, directory: str, names: frozenset[str] | None, mask: int, name: str
    ) -> bool | None:
        """Whether an event is urgent; None where it needs no scan."""
        if mask & _OF_ITSELF:
            for path in [path for path in self._modified if os.path.dirname(path) == directory]:
                del self._modified[path]
            return True
        if names is not None and name not in names:
            return None
        if name.startswith(".."):
            return True if name == DATA_LINK and not mask & flags.ATTRIB else None
        if not mask & flags.ISDIR:
            path = f"{directory}/{name}"
            if mask & _WRITER_DONE:
                self._modified.pop(path, None)
            elif mask & flags.MODIFY and len(self._modified) < _MANY:
                self._modified[path] = time.monotonic()
        return names is not None

    def close(self) -> None:
        """Closes all descriptors."""
        for closable in (self._epoll, self._inotify):
            if closable is not None:
                closable.close()
        if self._mounts is not None:
            os.close(self._mounts)
        self._epoll = self._inotify = self._mounts = self._kept = None


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
