"""Numbers that papers report: reference rows in tables of their own, never mixed with what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from persbench.errors import PersbenchError

from .aggregate import ThreatModel

SHIPPED = "papers"  # name of the tables that come with the package


@dataclass(frozen=True)
class Reported:
    """A line of a paper's table."""

    method: str  # as the paper calls it
    threat_model: ThreatModel
    values: Mapping[str, float | None]  # by metric
    plugin: str = ""  # the protection's name here, where there is one


@dataclass(frozen=True)
class ReportedMetric:
    """A column of a paper's table; `protects` says in which direction it means more protection ("" where it means none)."""

    name: str
    protects: str = ""  # "lower", "higher", or ""

    @property
    def label(self) -> str:
        """The name with an arrow."""
        return self.name + {"lower": " ↓", "higher": " ↑", "": ""}[self.protects]


@dataclass(frozen=True)
class Paper:
    """A table of a paper, where it stands, and under which protocol it was measured there."""

    title: str
    source: str
    protocol: str
    metrics: tuple[ReportedMetric, ...]
    rows: tuple[Reported, ...] = field(default=())


def read_reported(name: str = SHIPPED) -> tuple[Paper, ...]:
    """The tables of a JSON file, or those of the package ("papers"). Raises PersbenchError for a file that is none."""
    from pydantic import TypeAdapter, ValidationError

    path = files(__package__).joinpath("results", "reported.json") if name == SHIPPED else Path(name)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise PersbenchError(f"reported numbers {name}: {error.strerror}; give {SHIPPED!r} or a JSON file") from None
    try:
        papers = TypeAdapter(tuple[Paper, ...]).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise PersbenchError(f"reported numbers {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for paper in papers:
        known = {metric.name for metric in paper.metrics}
        for row in paper.rows:
            if unknown := sorted(set(row.values) - known):
                raise PersbenchError(f"reported numbers {name}: {row.method} of {paper.title!r} has no such metric: {', '.join(unknown)}")
    return papers
