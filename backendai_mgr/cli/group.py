"""The first page: which commands there are. A command's module is imported when the command is used."""

from importlib import import_module

import attrs
import click


@attrs.frozen
class _Entry:
    module: str
    summary: str
    hidden: bool = False


#: Name -> where it is (as an attribute of the command's name, with _ for -), and what the first page says.
_COMMANDS = {
    "up": _Entry("up", "Run the whole system here: database, manager and agent."),
    "run": _Entry("run", "Run code in a session and show its output as it comes."),
    "attach": _Entry("attach", "Follow what a session runs, and answer what it asks."),
    "runs": _Entry("runs", "List what a session has run, and remove what has ended."),
    "output": _Entry("runs", "Write what a run has written, as it was."),
    "terminal": _Entry("terminal", "Open a shell in a session, or come back to it."),
    "ps": _Entry("sessions", "List your sessions."),
    "rm": _Entry("sessions", "End sessions, or remove files in them."),
    "restart": _Entry("sessions", "Start a session anew, in its old folder."),
    "why": _Entry("sessions", "Tell what a session waits for, or why it ended."),
    "cp": _Entry("files", "Copy files into a session, or out of it."),
    "ls": _Entry("places", "List the files in a session."),
    "mv": _Entry("places", "Give a file in a session another path."),
    "logs": _Entry("files", "Show what a session has written."),
    "start-server": _Entry("serving", "Serve a cluster: the API, over a database of its own."),
    "agent": _Entry("serving", "Run sessions on this machine, for a manager."),
    "config": _Entry("config", "Check and show the configuration."),
    "schema": _Entry("admin", "Prepare the database."),
    "join-token": _Entry("joining", "Make a token that lets an agent of another machine join."),
    "fixture": _Entry("admin", "Load rows from a file into the database."),
    "worker": _Entry("serving", "Serve the API, as one process of `up` or `start-server`.", hidden=True),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in _COMMANDS.items() if not entry.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"{__package__}.{_COMMANDS[cmd_name].module}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name].summary) for name in self.list_commands(ctx)])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"backendai-mgr {version('backendai-mgr')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Compute sessions: send code, get an isolated session, lose nothing of its output.

    Start with `backendai-mgr up`, then, in another terminal, `backendai-mgr run 'print(6 * 7)'`.
    """
