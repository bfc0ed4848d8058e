"""syncd.core.mountinfo: which mounts never show a new secret."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from syncd.core.mountinfo import Mount, frozen_mount, parse_mountinfo

GENERATION = "/..2026_11_23_20_40_28.123456789"
ROOT = Mount("/", "/")


def test_lines_of_the_kernel_are_parsed() -> None:
    """Root, mount point, device and type are taken; any number of optional fields is skipped."""
    text = (
        b"22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw\n"
        b"36 22 0:32 /..data\\040x/a\\134b /run/se\\011cret\\012s rw master:1 - tmpfs tmpfs rw\n"
        b"37 22 0:33 / /caf\xc3\xa9\xff rw - tmpfs tmpfs rw\n"
        b"garbage\n"
    )
    assert parse_mountinfo(text) == (
        Mount("/", "/", "0:21", "overlay"),
        Mount("/..data x/a\\b", "/run/se\tcret\ns", "0:32", "tmpfs"),
        Mount("/", "/café\udcff", "0:33", "tmpfs"),
    )


@settings(max_examples=80)
@given(st.binary(max_size=120))
def test_any_bytes_are_parsed(text: bytes) -> None:
    """Nothing the kernel may ever write makes the parser fail."""
    parse_mountinfo(text)


@pytest.mark.parametrize(
    ("mounts", "path", "frozen"),
    [
        ([ROOT], "/run/s/a", None),
        ([], "/run/s/a", None),
        ([ROOT, Mount("/", "/run/s")], "/run/s/a", None),
        ([ROOT, Mount("/a", "/run/s/a")], "/run/s/a", "/run/s/a"),
        ([ROOT, Mount("/a", "/run/s/ab")], "/run/s/a", None),
        ([ROOT, Mount(GENERATION + "/d", "/run/s")], "/run/s/a", "/run/s"),
        ([ROOT, Mount(GENERATION + "//deleted", "/run/s")], "/run/s/a", "/run/s"),
        ([ROOT, Mount("/..backup/d", "/run/s")], "/run/s/a", None),
        ([Mount(GENERATION, "/run/s"), Mount("/", "/run/s")], "/run/s/a", None),
        ([Mount("/", "/run/s"), Mount(GENERATION, "/run/s")], "/run/s/a", "/run/s"),
        ([Mount(GENERATION, "/run"), Mount("/", "/run/s")], "/run/s/a", None),
    ],
)
def test_a_bound_file_or_generation_never_updates(
    mounts: list[Mount], path: str, frozen: str | None
) -> None:
    """A mount on the file itself, or of one generation, is frozen; the topmost mount decides."""
    found = frozen_mount(mounts, path)
    assert (found.point if found else None) == frozen
