"""``python -m bench``: measure, print the table, write the results."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import click
import trio
from rich.console import Console

from . import crowds, executes, memory, output, requests, starts
from .cases import Case
from .figures import Row, compare
from .harness import BenchError, Effort, open_system
from .results import Results, ResultsError, select, this_machine
from .table import changes_table, figures_table
from .wire import WireError

CASES = [
    *requests.CASES,
    *executes.CASES,
    *output.CASES,
    *memory.CASES,
    *crowds.CASES,
    *starts.CASES,
]
RESULTS = Path(__file__).resolve().parent / "results.json"


@click.command()
@click.option("--only", multiple=True, metavar="PATTERN", help="Cases whose name contains this; repeatable.")
@click.option("--quick", is_flag=True, help="See that everything works; the figures mean little.")
@click.option("--compare", "earlier", type=Path, metavar="FILE", help="Show the change against FILE.")
@click.option(
    "--output", type=Path, metavar="FILE", help="Where results go; bench/results.json for a whole run."
)
def main(only: tuple[str, ...], quick: bool, earlier: Path | None, output: Path | None) -> None:
    """Measure the installed program on this machine."""
    try:
        before = None if earlier is None else Results.read(earlier)
    except ResultsError as error:
        raise click.ClickException(str(error)) from None
    names = select([case.name for case in CASES], only)
    if not names:
        raise click.ClickException(f"No case is named so; there are {', '.join(c.name for c in CASES)}.")
    if output is None and not (only or quick):
        output = RESULTS
    effort = Effort.quick() if quick else Effort()
    rows, failures = trio.run(measure, [case for case in CASES if case.name in names], effort)
    results = Results(this_machine(), rows)
    if output is not None:
        results.write(output)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(figures_table(rows, results.machine))
    if before is not None:
        console.print(changes_table(compare(rows, before.rows)))
    sys.exit(1 if failures else 0)


async def measure(cases: Sequence[Case], effort: Effort) -> tuple[list[Row], int]:
    """The rows of all cases, and how many cases failed. Neighbours with the same settings share a running
    program; one that failed says so and the others go on."""
    rows: list[Row] = []
    failures = 0
    for settings, together in groupby(cases, key=lambda case: case.settings):
        async with open_system(settings) as system:
            for case in together:
                began = trio.current_time()
                click.echo(f"{case.name} ... ", nl=False, err=True)
                try:
                    rows += await case.measure(system, effort)
                except* (BenchError, WireError, trio.BrokenResourceError) as failed:
                    click.echo(f"cannot be measured: {_first(failed)}", err=True)
                    failures += 1
                else:
                    click.echo(f"{trio.current_time() - began:.1f} s", err=True)
    return rows, failures


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    """One error says as much as the hundred others beside it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
