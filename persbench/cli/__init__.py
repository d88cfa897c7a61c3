"""The command line. Nothing here imports torch until a command needs it."""

from __future__ import annotations

import sys

import typer

from persbench.errors import PersbenchError

from . import compare, leaderboard, list_, plan, run, score, store, submit

app = typer.Typer(
    name="persbench",
    help="Benchmark of protections against unauthorized personalization of text-to-image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("schema")(plan.print_schema)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("compare")(compare.compare)
app.command("score")(score.score)
app.add_typer(store.app, name="store")
app.add_typer(submit.app, name="submit")
app.command("verify")(submit.verify)
app.command("list")(list_.list_plugins)


def main() -> None:
    """Entry point: an error that a user can act on is one line, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except PersbenchError as error:
        if debug:
            raise
        print(f"persbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("persbench: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
