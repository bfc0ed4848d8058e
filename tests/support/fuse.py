"""A file system that fails on request: a FUSE server without a library.

    with FuseServer("/mnt", {"a": b"1", "..data": "gen", "gen": {"b": b"2"}}) as server:
        server.errors[OPEN] = errno.EIO       # every open fails
        server.silent.add(LOOKUP)             # no lookup is answered
        server.release()                      # answers what waits, and everything from now on
        server.die()                          # as when its process is killed: ENOTCONN

A process with a request that is not answered cannot end; `HeldDirectory` is for tests of that.
Nothing is cached, so every system call on the mount becomes a request (linux/fuse.h; the protocol's
version is 7.31). Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, TypeAlias

    Tree: TypeAlias = "dict[str, bytes | str | Tree]"

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ = 1, 2, 3, 5, 14, 15
STATFS, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 17, 18, 25, 26, 27, 28, 29
ACCESS, INTERRUPT, BATCH_FORGET = 34, 36, 42
OPERATIONS = {
    "lookup": LOOKUP,
    "getattr": GETATTR,
    "readlink": READLINK,
    "open": OPEN,
    "read": READ,
    "opendir": OPENDIR,
    "readdir": READDIR,
}
"""The requests that a scan or a listing can cause, by name."""

_HEADER = struct.Struct("<IIQQIIII")
_WITHOUT_ANSWER = {FORGET, BATCH_FORGET, INTERRUPT}
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class FuseServer:
    """Serves a tree at a directory: bytes are files, text is a link's target, a dict a directory.

    Attributes:
        errors: The errno that a request is answered with, by its operation.
        silent: Operations that are not answered.
        asked: Is set when a request was left without an answer.
    """

    def __init__(self, path: str | os.PathLike[str], tree: Tree) -> None:
        self.path = os.fspath(path)
        self.errors: dict[int, int] = {}
        self.silent: set[int] = set()
        self.asked = threading.Event()
        self._nodes: list[bytes | str | Tree] = [b"", tree]  # node 0 does not exist
        self._numbers: dict[tuple[int, str], int] = {}
        self._waiting: list[tuple[int, int, int, bytes]] = []
        self._lock = threading.Lock()
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._stop = os.eventfd(0)

    def __enter__(self) -> Self:
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0"
        if _libc.mount(b"test", os.fsencode(self.path), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self.path)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.die()
        _libc.umount2(os.fsencode(self.path), _MNT_DETACH)
        os.close(self._stop)

    def die(self) -> None:
        """Ends the connection: every access fails with ENOTCONN from then on."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()

    def release(self) -> None:
        """Answers what waits, and everything from now on."""
        with self._lock:
            self.silent.clear()
            self.errors.clear()
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._answer(*request)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while self._stop not in {descriptor for descriptor, _ in poll.poll()}:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    break
                continue  # the request was interrupted
            _, operation, unique, node, *_ = _HEADER.unpack_from(request)
            with self._lock:
                if operation in self.silent:
                    self._waiting.append((operation, unique, node, request[_HEADER.size :]))
                    self.asked.set()
                else:
                    self._answer(operation, unique, node, request[_HEADER.size :])
        os.close(self._device)

    def _answer(self, operation: int, unique: int, node: int, body: bytes) -> None:
        if operation in _WITHOUT_ANSWER:
            return
        number, payload = self.errors.get(operation, 0), b""
        if not number:
            try:
                payload = self._perform(operation, node, body)
            except OSError as error:
                number = error.errno or errno.EIO
        if number:
            payload = b""
        header = struct.pack("<IiQ", 16 + len(payload), -number, unique)
        with contextlib.suppress(OSError):  # the caller was killed
            os.write(self._device, header + payload)

    def _perform(self, operation: int, node: int, body: bytes) -> bytes:  # noqa: PLR0911 - a table
        if operation == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 9, 9, 1 << 17, 1, 0, 0, 0)
        if operation == LOOKUP:
            return self._lookup(node, body.rstrip(b"\0").decode())
        if operation == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if operation == READLINK:
            target = self._nodes[node]
            assert isinstance(target, str)
            return target.encode()
        if operation in (OPEN, OPENDIR):
            direct = 1  # no page cache
            return struct.pack("<QII", 0, direct, 0)
        if operation == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            content = self._nodes[node]
            assert isinstance(content, bytes)
            return content[offset : offset + size]
        if operation == READDIR:
            return self._entries(node, body)
        if operation == STATFS:
            return bytes(80)
        if operation in (RELEASE, RELEASEDIR, FLUSH, ACCESS):
            return b""
        raise OSError(errno.ENOSYS, "not implemented")

    def _lookup(self, node: int, name: str) -> bytes:
        directory = self._nodes[node]
        if not isinstance(directory, dict) or name not in directory:
            raise FileNotFoundError(errno.ENOENT, name)
        key = (node, name)
        if key not in self._numbers:
            self._numbers[key] = len(self._nodes)
            self._nodes.append(directory[name])
        number = self._numbers[key]
        self._nodes[number] = directory[name]
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attributes(number)

    def _attributes(self, node: int) -> bytes:
        found = self._nodes[node]
        kind = {bytes: stat.S_IFREG | 0o600, str: stat.S_IFLNK | 0o777, dict: stat.S_IFDIR | 0o755}
        size = len(found) if isinstance(found, (bytes, str)) else 0
        mode = kind[type(found)]
        return struct.pack(
            "<QQQQQQIIIIIIIIII", node, size, 0, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 512, 0
        )

    def _entries(self, node: int, body: bytes) -> bytes:
        _, offset, _ = struct.unpack_from("<QQI", body)
        directory = self._nodes[node]
        assert isinstance(directory, dict)
        packed = b""
        for number, name in enumerate(directory):
            if number >= offset:
                encoded = name.encode()
                entry = struct.pack("<QQII", 1, number + 1, len(encoded), 0) + encoded
                packed += entry.ljust(-len(entry) % 8 + len(entry), b"\0")
        return packed
