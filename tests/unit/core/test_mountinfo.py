"""syncd.core.mountinfo: which mounts do not follow a publisher."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.mountinfo import Mount, MountTree, frozen_mount, parse_mountinfo

GENERATION = "/..2026_11_23_20_40_28.123456789"
OWN_GENERATION = "/..2026_11_23_20_40_28.k3xw9f_1"
ROOT = Mount("/", "/")


def test_lines_of_the_kernel_are_parsed() -> None:
    """Root, mount point, device and type are taken; any number of optional fields is skipped."""
    text = (
        b"22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw\n"
        b"36 22 0:32 /..data\\040x/a\\134b /run/se\\011cret\\012s rw master:1 - tmpfs tmpfs rw\n"
        b"37 22 0:33 / /caf\xc3\xa9\xff rw - tmpfs tmpfs rw\n"
        b"garbage\n"
        b"x y 0:33 / / rw - tmpfs tmpfs rw\n"
    )
    assert parse_mountinfo(text) == (
        Mount("/", "/", "0:21", "overlay", 22, 1),
        Mount("/..data x/a\\b", "/run/se\tcret\ns", "0:32", "tmpfs", 36, 22),
        Mount("/", "/café\udcff", "0:33", "tmpfs", 37, 22),
    )


@settings(max_examples=80)
@given(st.binary(max_size=120))
def test_any_bytes_are_parsed(text: bytes) -> None:
    """Nothing the kernel may ever write makes the parser fail."""
    parse_mountinfo(text)


def stack(*mounts: Mount | tuple[Mount, int]) -> MountTree:
    """A tree of mounts, numbered from 1; each on the one before it, or on the one that is named."""
    numbered = []
    for number, item in enumerate(mounts, 1):
        mount, parent = item if isinstance(item, tuple) else (item, number - 1)
        numbered.append(msgspec.structs.replace(mount, id=number, parent=parent))
    return MountTree(numbered)


@pytest.mark.parametrize(
    ("mounts", "frozen"),
    [
        ([ROOT], None),
        ([], None),
        ([ROOT, Mount("/", "/run/s")], None),
        ([ROOT, Mount("/a", "/run/s/a")], ("/run/s/a", "file")),
        ([ROOT, Mount("/a//deleted", "/run/s/a")], ("/run/s/a", "removed")),
        ([ROOT, Mount("/a", "/run/s/ab")], None),
        ([ROOT, Mount(GENERATION + "/d", "/run/s")], ("/run/s", "generation")),
        ([ROOT, Mount(GENERATION + "/a", "/run/s/a")], ("/run/s/a", "generation")),
        ([ROOT, Mount(OWN_GENERATION, "/run/s")], ("/run/s", "generation")),
        ([ROOT, Mount(GENERATION + "//deleted", "/run/s")], ("/run/s", "removed")),
        ([ROOT, Mount("/d//deleted", "/run/s")], ("/run/s", "removed")),
        ([ROOT, Mount("/..backup/d", "/run/s")], None),
        # one on the other, at one point
        ([ROOT, Mount(GENERATION, "/run/s"), Mount("/", "/run/s")], None),
        ([ROOT, Mount("/", "/run/s"), Mount(GENERATION, "/run/s")], ("/run/s", "generation")),
        # two on the root at one point: the later one is on top
        ([ROOT, (Mount("/", "/run/s"), 1), (Mount(GENERATION, "/run/s"), 1)], "generation"),
        ([ROOT, Mount(GENERATION, "/run"), Mount("/", "/run/s")], None),
        # the file's mount is hidden by a later one on a directory above it
        ([ROOT, (Mount("/a", "/run/s/a"), 1), (Mount("/", "/run"), 1)], None),
        # a mount that is its own parent is on no way
        ([(Mount("/", "/"), 9), (Mount("/a", "/run/s/a"), 2)], None),
    ],
)
def test_what_does_not_follow_a_publisher(
    mounts: list[Mount | tuple[Mount, int]], frozen: tuple[str, str] | str | None
) -> None:
    """A mount of one file, of one generation, or of what is gone; the one on top decides."""
    tree = stack(*mounts)
    tree.mount_of("/run/s/b")  # what is known of a file beside it must not decide
    found = frozen_mount(tree, "/run/s/a")
    if isinstance(frozen, str):
        frozen = ("/run/s", frozen)
    assert ((found.mount.point, found.kind) if found else None) == frozen


def test_a_listing_that_leads_in_a_circle() -> None:
    """The kernel makes none; a sandbox might."""
    ring = [Mount("/", "/", id=1), Mount("/", "/", id=5, parent=1), Mount("/", "/", id=1, parent=5)]
    assert MountTree(ring).mount_of("/a") == ring[1]
