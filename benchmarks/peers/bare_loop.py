"""A bare loop: waits on inotify, reads and hashes all files, sends a line on a Unix socket.

python -m benchmarks.peers.bare_loop ROOT SOCKET
"""

from __future__ import annotations

import os
import socket
import sys

from inotify_simple import INotify, flags

from benchmarks.peers.hashing import hash_files


def main(root: str, path: str) -> None:
    """Serves one listener for ever."""
    paths = [f"{root}/{name}" for name in sorted(os.listdir(root)) if not name.startswith("..")]
    inotify = INotify()
    inotify.add_watch(root, flags.MOVED_TO)
    known = hash_files(paths)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    consumer, _ = listener.accept()
    while True:
        if not any(event.name == "..data" for event in inotify.read()):
            continue
        found = hash_files(paths)
        changed = [path for path in paths if found[path] != known[path]]
        known = found
        consumer.sendall(f"{' '.join(changed)}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
