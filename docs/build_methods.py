"""Write docs/methods.md from the cards of the protections: `python docs/build_methods.py`."""

from __future__ import annotations

from pathlib import Path

from persbench import registry
from persbench.tracks.avatars import Avatars

PAGE = Path(__file__).parent / "methods.md"
INTRO = """# Protections

Written by `python docs/build_methods.py` from the cards and options of the plug-ins. What each does, and how it differs from its
authors' code, stands at the top of its file in `methods/`. A budget is L-infinity in 8-bit levels on the saved picture: the paper's by
default, one for all with `--budget`; `--budget standard` is that of the track, on `avatars` {budget:g} levels. The last column names the
options that the embedded track sets; everything else is the paper's or its code's default.

{tables}
"""


def value(found: object) -> str:
    """A number without needless digits."""
    return f"{found:g}" if isinstance(found, float) else str(found)


def table(names: list[str]) -> str:
    """One row a method."""
    rows = ["| name | what | paper | knows | budget | on `avatars` |", "|---|---|---|---|---|---|"]
    for name in names:
        plugin = registry.load("methods", name)
        card = plugin.card
        where = ", ".join(str(part) for part in (card.venue, card.year) if part)
        repository = f"[{card.repository}](https://github.com/{card.repository})" if card.repository else ""
        paper = ". ".join(part for part in (card.paper or card.title, where, repository) if part)
        budget = getattr(plugin.Config(), "budget_levels", None)
        given = ", ".join(f"{key}={value(found)}" for key, found in Avatars.protocol.options.get(name, {}).items())
        cells = (f"`{name}`", registry.summary("methods", name), paper, card.knows, "–" if budget is None else value(budget), given or "–")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def page() -> str:
    """The whole page."""
    groups: dict[str, list[str]] = {"The published photos": [], "The released model": [], "Nothing": []}
    for name in registry.names("methods"):
        changes = registry.load("methods", name).changes
        groups["The released model" if "model" in changes else "The published photos" if changes else "Nothing"].append(name)
    return INTRO.format(
        budget=Avatars.standard_budget, tables="\n\n".join(f"## {title}\n\n{table(names)}" for title, names in groups.items())
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
