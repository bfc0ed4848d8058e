"""The harness: measures, prints one table, writes it down, and fails when a bound is missed.

python -m benchmarks [--effort full|quick|tiny] [--only SUBJECT]...
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final, TypeVar

import click

from benchmarks import machine, report
from benchmarks.bench import EFFORTS, Bench
from benchmarks.others import in_peace
from benchmarks.plot import Curve, svg
from benchmarks.processes import Syncd
from benchmarks.scenarios import (
    fleet,
    idle,
    latency,
    memory,
    provisioning,
    scale,
    startup,
    throughput,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.numbers import Record, Row

    T = TypeVar("T")

HERE: Final = os.path.dirname(os.path.abspath(__file__))
PAGE: Final = f"{os.path.dirname(HERE)}/docs/performance.md"
PLOT: Final = f"{os.path.dirname(HERE)}/docs/latency.svg"
SUBJECTS: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "subscriber": latency.subscriber_rows,
    "throughput": throughput.rows,
    "memory": memory.rows,
    "scale": scale.rows,
    "startup": startup.rows,
    "provisioning": provisioning.rows,
    "idle": idle.rows,
    "fleet": fleet.rows,
}


@click.command()
@click.option("--effort", type=click.Choice(list(EFFORTS)), default="full", show_default=True)
@click.option(
    "--only",
    type=click.Choice(["webhook", *SUBJECTS]),
    multiple=True,
    help="Measure this subject; may be given several times. All by default.",
)
@click.option("--output", default=f"{HERE}/results.json", help="Where the results go.")
@click.option(
    "--python",
    default=sys.executable,
    type=click.Path(exists=True, resolve_path=False),
    help="Interpreter of the syncd to measure; this one's by default.",
)
def main(effort: str, only: tuple[str, ...], output: str, python: str) -> None:
    """Measures syncd against what one would use instead.

    A full run of all subjects also brings docs/performance.md and its plot up to date.
    """
    Syncd.python = os.path.abspath(python)
    described = machine.describe()
    click.echo(", ".join(f"{key}: {value}" for key, value in described.items()))
    records: list[Record] = []
    curves: list[Curve] = []
    with Bench(EFFORTS[effort]) as bench:
        if not only or "webhook" in only:
            (found, curves), others = _measured("webhook", latency.webhook_rows, bench)
            records += [row.record(others) for row in found]
        for subject, measure in SUBJECTS.items():
            if not only or subject in only:
                rows, others = _measured(subject, measure, bench)
                records += [row.record(others) for row in rows]
    click.echo(report.table(records))
    with open(output, "w") as file:
        file.write(report.results(described, records))
    if effort == "full" and not only:
        _document(described, records, curves)
    sys.exit(report.verdict(records))


def _measured(subject: str, measure: Callable[[Bench], T], bench: Bench) -> tuple[T, float]:
    began = time.monotonic()
    result, others = in_peace(
        lambda: measure(bench),
        lambda why: click.echo(f"{subject}: {why}", err=True),
        bench.effort.attempts,
    )
    click.echo(f"measured {subject} in {time.monotonic() - began:.0f} s", err=True)
    return result, others


def _document(
    described: dict[str, str | int | float], records: list[Record], curves: list[Curve]
) -> None:
    with open(PAGE) as file:
        page = file.read()
    with open(PAGE, "w") as file:
        file.write(report.fill_in(page, report.markdown(described, records)))
    with open(PLOT, "w") as file:
        file.write(svg("From the swap to the webhook", "secrets", "milliseconds", curves))


if __name__ == "__main__":
    main()
