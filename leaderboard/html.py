"""The leaderboard as one plain HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from .aggregate import Line, Score
from .terminal import interval, number, percent


def write_page(path: Path, lines: Sequence[Line], scores: Sequence[Score], disclaimers: Sequence[str]) -> None:
    """Write the page; everything that comes from records is escaped."""
    template = Environment(autoescape=True).from_string(files(__package__).joinpath("page.html.j2").read_text("utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = template.render(lines=lines, scores=scores, disclaimers=disclaimers, interval=interval, number=number, percent=percent)
    path.write_text(text, "utf-8")
