"""Entry point: reads the command line, then runs what the command asked for. The only `trio.run` is here."""

import os
import sys


def main() -> None:
    """Run one command and exit with its status. Expected failures are one line on standard error."""
    import click

    from .cli.errors import CliError
    from .cli.group import cli

    try:
        # A command returns what is to be run on Trio; asking for help returns a plain exit status.
        task = cli.main(prog_name="backendai-mgr", standalone_mode=False)
        if callable(task):
            import trio

            task = trio.run(task)
    except CliError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not try to write the rest at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(task)


if __name__ == "__main__":
    main()
