"""``python -m bench``: measure, print the table, write the results."""

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click
import trio
from rich.console import Console

from . import crowds, executes, memory, output, readers, requests, rivals, starts, table
from .cases import Case
from .figures import Row, compare
from .harness import BenchError, Effort, open_system
from .results import Results, ResultsError, select, this_machine
from .wire import WireError

CASES = [
    *requests.CASES,
    *executes.CASES,
    *output.CASES,
    *readers.CASES,
    *memory.CASES,
    *starts.CASES,
    *crowds.CASES,
]
RESULTS = Path(__file__).resolve().parent / "results.json"
#: A load generator that uses more of a processor than this may be what was measured.
BUSY = 0.8


@click.command()
@click.option("--only", multiple=True, metavar="PATTERN", help="Cases whose name contains this; repeatable.")
@click.option("--quick", is_flag=True, help="See that everything works; the figures mean little.")
@click.option("--compare", "earlier", type=Path, metavar="FILE", help="Show the change against FILE.")
@click.option(
    "--output", type=Path, metavar="FILE", help="Where results go; bench/results.json for all cases."
)
@click.option(
    "--rivals", "rival", metavar="PYTHON", help="An interpreter that has jupyter_server: measure it too."
)
@click.option("--markdown", is_flag=True, help="Print tables for README.md.")
def main(
    only: tuple[str, ...],
    quick: bool,
    earlier: Path | None,
    output: Path | None,
    rival: str | None,
    markdown: bool,
) -> None:
    """Measure the installed program on this machine. Exits with 1 when a case could not be measured."""
    cases = [*CASES, *(rivals.cases(rival) if rival else ())]
    try:
        before = None if earlier is None else Results.read(earlier)
    except ResultsError as error:
        raise click.ClickException(str(error)) from None
    names = select([case.name for case in cases], only)
    if not names:
        raise click.ClickException(
            f"No case is named so; there are {', '.join(case.name for case in cases)}."
        )
    effort = Effort.quick() if quick else Effort()
    measured = trio.run(until_told_to_stop, [case for case in cases if case.name in names], effort)
    if measured is None:
        sys.exit(128 + signal.SIGTERM)
    rows, failures = measured
    results = Results(this_machine(), rows)
    if output is None and not (only or quick):
        output = RESULTS
    if output is not None:
        results.write(output)
    shown = [table.figures(rows, results.machine)]
    if before is not None:
        shown.append(table.changes(compare(rows, before.rows), before.machine))
    console = Console(width=None if sys.stdout.isatty() else 200)
    for cells in shown:
        console.print(cells.markdown() if markdown else cells.rich(), soft_wrap=markdown, markup=False)
    for row in rows:
        if row.load > BUSY:
            click.echo(f"{row.name}: the load generator used {row.load:.0%} of a processor.", err=True)
    sys.exit(1 if failures else 0)


async def until_told_to_stop(cases: Sequence[Case], effort: Effort) -> tuple[list[Row], int] | None:
    """As `measure`; None after SIGTERM, which ends what was started as Ctrl-C does."""
    measured = None
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        measured = await measure(cases, effort)
        nursery.cancel_scope.cancel()
    return measured


async def measure(cases: Sequence[Case], effort: Effort) -> tuple[list[Row], int]:
    """The rows of all cases, and how many cases failed.

    Each has a running program of its own: what one leaves behind reaches no other. One that fails says so,
    and the others go on.
    """
    rows: list[Row] = []
    failures = 0
    for case in cases:
        began = trio.current_time()
        click.echo(f"{case.name} ... ", nl=False, err=True)
        try:
            async with open_system(case.settings) as system:
                rows += await case.measure(system, effort)
        except* (BenchError, WireError) as known:
            click.echo(f"cannot be measured: {_first(known)}", err=True)
            failures += 1
        except* Exception as unknown:
            click.echo("cannot be measured:", err=True)
            traceback.print_exception(unknown)
            failures += 1
        else:
            click.echo(f"{trio.current_time() - began:.1f} s", err=True)
    return rows, failures


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    """One error says as much as a hundred like it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
