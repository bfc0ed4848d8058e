"""A loop over `watchfiles`: hashes all files whenever something changes.

python -m benchmarks.peers.watchfiles_loop ROOT
"""

from __future__ import annotations

import os
import sys

from watchfiles import watch

from benchmarks.peers.hashing import hash_files


def main(root: str) -> None:
    """Watches for ever."""
    paths = [f"{root}/{name}" for name in sorted(os.listdir(root)) if not name.startswith("..")]
    known = hash_files(paths)
    for _ in watch(root):
        found = hash_files(paths)
        for path in paths:
            if found[path] != known[path]:
                sys.stdout.write(f"{path}\n")
        sys.stdout.flush()
        known = found


if __name__ == "__main__":
    main(*sys.argv[1:])
