"""The harness: what it says of samples, its table, its verdict, and one tiny run of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from support.waiting import DEADLINE, wait_until

from benchmarks import others, report
from benchmarks.__main__ import PAGE
from benchmarks.mounts import Mount
from benchmarks.numbers import Pair, Row, percentile
from benchmarks.others import BUSY, Meter, in_peace
from benchmarks.plot import Curve, svg

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {"name", "ours", "peer", "ratio", "bound", "unit", "ok"}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_a_sample(share: float, expected: float) -> None:
    """The nearest rank, from samples in any order."""
    assert percentile([*range(100, 0, -1)], share) == expected


def test_ours_and_the_peer_are_measured_in_turn() -> None:
    """Noise that comes and goes hits both."""
    order: list[str] = []

    def measure(who: str) -> float:
        order.append(who)
        return float(len(order))

    pair = Pair()
    pair.take(lambda: measure("ours"), lambda: measure("peer"), 3)
    assert order == ["ours", "peer"] * 3
    assert (pair.ours, pair.peer) == ([1, 3, 5], [2, 4, 6])


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (Row("r", "ms", [1, 2, 90], [4], bound=0.5), True),
        (Row("r", "ms", [1, 3, 90], [4], bound=0.5), False),
        (Row("r", "ms", [1], bound=0.5), False),
        (Row("r", "ms", [1], [0], bound=0.5), False),
        (Row("r", "MiB", [40], [1], bound=40, bounded="ours"), True),
        (Row("r", "MiB", [40.1], [100], bound=40, bounded="ours"), False),
        (Row("r", "MiB", [1000]), True),
    ],
)
def test_a_bound_is_held_by_the_median(row: Row, *, ok: bool) -> None:
    """By the ratio or by ours; what could not be compared has not held."""
    record = row.record()
    assert record["ok"] is ok
    assert record.keys() >= KEYS
    assert report.verdict([record]) == (0 if ok else 1)
    assert ("MISSED" in report.table([record])) is not ok


def test_a_miss_on_a_busy_machine_is_no_verdict() -> None:
    """It is marked, and the run says by its exit code that it should be repeated."""
    missed = Row("r", "ms", [3], [1], bound=2)
    held = Row("r", "ms", [1], [1], bound=2)
    busy, calm = missed.record(0.5), held.record(0.01)
    assert report.verdict([calm, busy]) == os.EX_TEMPFAIL
    assert report.verdict([busy, missed.record(0.01)]) == 1
    assert report.verdict([held.record(0.5)]) == 0
    assert "MISSED (busy machine)" in report.table([busy])


def test_what_others_use_is_counted_and_what_is_ours_is_not(tmp_path: Path) -> None:
    """A process that is nobody's child here keeps a processor busy; one of ours does the same."""
    spin = (
        "import os, time; print(os.getpid(), flush=True)\n"
        f"end = time.monotonic() + {2 * DEADLINE}\nwhile time.monotonic() < end: pass"
    )
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        ours.stdout.readline()
        before = others._own()
        wait_until(lambda: others._own() - before > 0.2)
        ours.kill()
    said = tmp_path / "pid"
    detach = f"{sys.executable} -c '{spin}' > {said} &"
    subprocess.run(["sh", "-c", detach], check=True, timeout=DEADLINE)
    wait_until(lambda: said.exists() and said.read_text().endswith("\n"))
    try:
        meter = Meter()
        wait_until(lambda: others._busy() - meter.busy > 1)
        assert meter.others() > BUSY
    finally:
        os.kill(int(said.read_text()), signal.SIGKILL)


def test_a_subject_is_measured_again_while_others_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calmest of a few attempts counts."""
    shares = iter([0.9, 0.4, 0.6])
    monkeypatch.setattr(Meter, "others", lambda _: next(shares))
    monkeypatch.setattr(others, "_await_calm", lambda: None)
    results = iter("abc")
    said: list[str] = []
    assert in_peace(lambda: next(results), said.append) == ("b", 0.4)
    assert said == [
        "others used 90% of a processor, measuring again",
        "others used 40% of a processor, measuring again",
    ]


def test_the_page_has_a_place_for_the_figures() -> None:
    """A full run writes them there; the words around them stay."""
    with open(PAGE) as file:
        page = file.read()
    record = Row("a row", "ms", [1.25], [5], bound=0.5, against="nobody").record()
    filled = report.fill_in(page, report.markdown({"cores": 2}, [record]))
    assert "| a row | 1.25 ms |  | 5 ms |  | 0.25 | ≤ 0.5 times | ok | nobody |" in filled
    assert report.fill_in(filled, "others") == report.fill_in(page, "others")
    with pytest.raises(ValueError, match="no place for figures"):
        report.fill_in("a page", "figures")


def test_the_plot_is_svg_with_every_point() -> None:
    """Medians as points, both percentiles as lines, on axes of whole decades."""
    curves = [Curve("<ours>", [(1, 2, 3), (10_000, 200, 300)]), Curve("peer", [(1, 20, 31)])]
    tree = ET.fromstring(svg("a & b", "secrets", "ms", curves))
    namespace = "{http://www.w3.org/2000/svg}"
    assert len(list(tree.iter(f"{namespace}circle"))) == 3
    texts = [item.text for item in tree.iter(f"{namespace}text")]
    assert {"1", "10", "100", "1,000", "10,000", "a & b"} <= set(texts)
    assert "<ours>: median, and p99 dashed" in texts


def test_a_rotation_is_a_swap(tmp_path: Path) -> None:
    """The generation is whole before the link moves; what is not rotated keeps its value."""
    mount = Mount(str(tmp_path), 3)
    before = _contents(mount)
    link = os.readlink(f"{mount.root}/..data")
    mount.rotate(1)
    after = _contents(mount)
    assert os.readlink(f"{mount.root}/..data") != link
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True]


def _contents(mount: Mount) -> list[bytes]:
    contents = []
    for path in mount.paths:
        with open(path, "rb") as file:
            contents.append(file.read())
    return contents


def test_a_tiny_run(tmp_path: Path) -> None:
    """Real daemons and peers, from end to end; the exit code is the verdict on the bounds."""
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--effort", "tiny", "--output", str(output)]
    done = subprocess.run(
        [*command, "--only", "subscriber", "--only", "startup"],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    assert output.exists(), done.stderr
    results = json.loads(output.read_text())
    rows = results["rows"]
    assert results["machine"]["cores"] >= 1
    assert all(row.keys() >= KEYS for row in rows)
    assert {row["bound"] for row in rows} == {3, 2.5, None, 0.6}
    assert all(row["ours"] > 0 for row in rows)
    assert done.returncode == report.verdict(rows), done.stderr
    assert all(row["name"] in done.stdout for row in rows)
