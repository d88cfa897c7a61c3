"""`persbench list`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from persbench import registry


def list_plugins(
    kind: Annotated[
        str, typer.Argument(help="methods, personalizers, countermeasures, prompt_shifts, metrics or tracks; all if left out")
    ] = "",
) -> None:
    """Show methods, attacks, metrics and tracks, one line each."""
    from rich.console import Console
    from rich.table import Table

    from persbench.errors import UnknownNameError

    if kind and kind not in registry.BASES:
        raise UnknownNameError(f"unknown kind {kind!r}; {registry.nearest(kind, registry.BASES)}")
    console = Console()
    for each in [kind] if kind else list(registry.BASES):
        table = Table(title=each.replace("_", " "), title_justify="left", box=None, show_header=False, padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name in registry.names(each):
            table.add_row(name, registry.summary(each, name))
        console.print(table if table.row_count else f"[italic]{each.replace('_', ' ')}[/]\n  none yet")
        console.print()
