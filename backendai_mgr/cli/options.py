"""Options that several commands share."""

from pathlib import Path

import click

#: Where `up` keeps everything, and where the others look for a running one.
data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="BACKENDAI_MGR_DATA_DIR",
    show_envvar=True,
    help="Folder of the local system.  [default: /var/lib/backendai-mgr as root, else"
    " $XDG_DATA_HOME/backendai-mgr]",
)

#: Inherited file descriptors of the children of `up` and `start-server`.
lifeline = click.option("--lifeline", type=int, default=None, hidden=True)
ready = click.option("--ready", type=int, default=None, hidden=True)
listen = click.option("--listen", type=int, default=None, hidden=True)

#: What `start-server` calls each of its workers: in leases and logs, and among its figures.
worker_id = click.option("--id", "worker_id", default=None, hidden=True)
metrics_number = click.option("--metrics-number", type=int, default=None, hidden=True)

config_file = click.option(
    "-f",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration file, instead of the one found in the usual places.",
)
