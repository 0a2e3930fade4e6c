"""Figures that the workers of one server keep together, so that any of them can tell those of all."""

import prometheus_client.values


def share_figures(number: int) -> None:
    """Keep this process's figures in the folder of the environment's ``PROMETHEUS_MULTIPROC_DIR``.

    Called before there are any. Files have the worker's *number* in their names, not its process id: a worker
    that is started again, or succeeds another, goes on counting where the earlier one of its number ended,
    and the files do not become more.
    """
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
