"""A CSI mount: published to as the kubelet's AtomicWriter does, independently of syncd's publisher.

    publish("/mount", {"a": b"1", "db/user": b"2"})

    /mount/..2026_11_23_20_40_28.k3xw9f/   a generation: the files themselves
    /mount/..data -> ..2026_11_23_…        the generation that counts
    /mount/a -> ..data/a                   what applications open

Modes are those of the Secrets Store CSI driver: 1777 for the mount (a tmpfs), 0755 for directories,
0644 for files. New names are linked after the swap, removed names are unlinked after it.

Executed as a program it swaps generations until it is killed (see `swapping`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_one_at_a_time = threading.Lock()  # as the driver has one writer for a mount


def publish(
    root: str | os.PathLike[str],
    files: Mapping[str, bytes],
    *,
    mode: int = 0o644,
    unchanged: Iterable[str] = (),
) -> None:
    """Makes a mount hold exactly these files, by a new generation even if they are the same.

    Args:
        root: The mount; made if it does not exist.
        files: Contents by path below the mount.
        mode: Permission bits of each file.
        unchanged: Paths to link from the generation before, which is faster than to write them.
    """
    with _one_at_a_time:
        _publish(os.fspath(root), files, mode, frozenset(unchanged))


def _publish(root: str, files: Mapping[str, bytes], mode: int, unchanged: frozenset[str]) -> None:
    if not os.path.isdir(root):
        os.makedirs(root)
        os.chmod(root, 0o1777)
    data, swap = f"{root}/..data", f"{root}/..data_tmp"
    before = os.readlink(data) if os.path.islink(data) else ""
    stamp = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime())
    generation = tempfile.mkdtemp(prefix=stamp, dir=root)
    os.chmod(generation, 0o755)
    for path, content in files.items():
        file = f"{generation}/{path}"
        if "/" in path:
            os.makedirs(os.path.dirname(file), mode=0o755, exist_ok=True)
        if path in unchanged:
            os.link(f"{root}/{before}/{path}", file)
            continue
        with open(file, "wb") as opened:
            opened.write(content)
        os.chmod(file, mode)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(swap)  # of a publisher that was killed
    os.symlink(os.path.basename(generation), swap)
    os.rename(swap, data)  # before it everything is old, after it everything is new
    names = {path.partition("/")[0] for path in files}
    for name in names:
        if not os.path.lexists(f"{root}/{name}"):
            os.symlink(f"..data/{name}", f"{root}/{name}")
    for entry in os.listdir(root):
        if entry not in names and not entry.startswith("..") and _is_published(f"{root}/{entry}"):
            os.unlink(f"{root}/{entry}")
    if before.startswith("..2") and "/" not in before:  # not where a hostile link leads
        shutil.rmtree(f"{root}/{before}", ignore_errors=True)


def _is_published(path: str) -> bool:
    return os.path.islink(path) and os.readlink(path).startswith("..data/")


@contextlib.contextmanager
def swapping(root: str | os.PathLike[str], names: Iterable[str]) -> Iterator[None]:
    """While the block runs, another process swaps generations as fast as it can.

    All files of a generation hold its number. The first generation is there when the block begins;
    the process is killed at the end, wherever it is.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, os.fspath(root), *names], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline(), "the publisher ended"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    for number in itertools.count():
        publish(sys.argv[1], dict.fromkeys(sys.argv[2:], b"%d" % number))
        if number == 0:
            sys.stdout.write("the first generation is there\n")
            sys.stdout.flush()
