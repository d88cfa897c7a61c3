"""What plug-ins hand over, checked before it is stored: a wrong shape, type, row or side effect is an error with the plug-in's name."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from persbench.contracts import Evidence, Metric, Row
from persbench.errors import PersbenchError

if TYPE_CHECKING:
    from .stages import Pipeline, Ref

F = TypeVar("F", bound=Callable[..., Any])


def check_pictures(name: str, found: Any, like: torch.Tensor) -> None:
    """Raise PersbenchError unless `found` is a finite float tensor of the shape of `like`, (N, 3, H, W)."""
    if not isinstance(found, torch.Tensor) or not found.is_floating_point() or found.shape != like.shape:
        got = "nothing" if found is None else type(found).__name__
        if isinstance(found, torch.Tensor):
            got = f"{found.dtype} of shape {tuple(found.shape)}"
        raise PersbenchError(f"{name} must return float photos of shape {tuple(like.shape)}; it returned {got}")
    if not torch.isfinite(found).all():
        raise PersbenchError(f"{name} returned photos that are not finite")


def check_model(name: str, found: Any) -> None:
    """Raise PersbenchError unless `found` is a model. Names, shapes and values of its weights are checked when they are stored."""
    from persbench.diffusion import DiffusionModel

    if not isinstance(found, DiffusionModel):
        raise PersbenchError(f"{name} must return a DiffusionModel; it returned {type(found).__name__}")


def check_rows(name: str, metric: Metric, rows: Any, evidence: Evidence) -> list[Row]:
    """The rows of a metric; values that are not finite become error rows.

    Raises PersbenchError unless every (metric, set) has one row a picture, of a set that exists, under a name that the metric declares.
    """
    rows = list(rows) if isinstance(rows, (list, tuple)) else [rows]
    if not rows:
        raise PersbenchError(f"metric {name} returned no rows")
    sizes = {label: len(each.pictures) for label, each in evidence.sets.items()}
    sizes |= {"published": len(evidence.published), "released": len(evidence.released)}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    checked = []
    for row in rows:
        if not isinstance(row, Row):
            raise PersbenchError(f"metric {name} must return Rows; it returned {type(row).__name__}")
        if not {row.metric, row.metric.partition(":")[0]} & set(metric.higher_is_better):
            raise PersbenchError(f"metric {name} returned {row.metric!r}, which its higher_is_better does not declare")
        if row.set not in sizes:
            raise PersbenchError(f"metric {name} returned rows of a set {row.set!r}, which does not exist")
        if row.value is not None and (isinstance(row.value, bool) or not isinstance(row.value, (int, float))):
            raise PersbenchError(f"metric {name} must return numbers; it returned {type(row.value).__name__}")
        if row.value is None and not row.error:
            raise PersbenchError(f"metric {name} returned a row of {row.metric} without value and without error")
        groups[row.metric, row.set].append(row.index)
        checked.append(row if row.value is None or math.isfinite(row.value) else replace(row, value=None, error="not a finite number"))
    for (label, where), indices in groups.items():
        if Counter(indices) != Counter(range(sizes[where])):
            raise PersbenchError(f"metric {name} must return one row of {label} for each of the {sizes[where]} pictures of {where}")
    return checked


@contextmanager
def lent(pipeline: Pipeline, name: str, *refs: Ref) -> Iterator[None]:
    """Raise PersbenchError when a plug-in changes a model that it was lent, and load that again: other cells would be wrong.

    PyTorch counts in-place changes of a tensor; only where a count moved are the bits compared with the files.
    """

    def versions() -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for _, model in models for tensor in model.state().values()]

    models = [(ref, pipeline.model(ref)) for ref in refs]
    before = versions()
    try:
        yield
    finally:
        moved = versions() != before
        if moved:
            pipeline.release_memory()
    if moved and any(model.difference(pipeline.model(ref)) for ref, model in models):
        raise PersbenchError(f"{name} changed a model that was lent to it; it must clone what it changes")


def planning(plan: F) -> F:
    """What a plug-in raises while a cell is planned (words, options) becomes an error of this cell."""

    @functools.wraps(plan)
    def planned(pipeline: Pipeline, cell: Any, *more: Any, **named: Any) -> Any:
        try:
            return plan(pipeline, cell, *more, **named)
        except PersbenchError:
            raise
        except (Exception, SystemExit) as error:
            from .stages import StageError

            raise StageError(f"plan {cell.method} · {cell.attack} · {cell.subject}: {type(error).__name__}: {error}") from error

    return planned  # type: ignore[return-value]
