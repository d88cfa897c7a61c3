"""Names to plug-ins, through entry points: built-in plug-ins and those of other packages enter alike.

Nothing is imported until a plug-in is used. A plug-in that cannot be imported warns and is skipped where all are listed, and is an
error where it is asked for by name.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from persbench import contracts
from persbench.errors import PersbenchError, UnknownNameError

BASES = {
    "methods": "Method",
    "countermeasures": "Countermeasure",
    "tampers": "Tamper",
    "personalizers": "Personalizer",
    "prompt_shifts": "PromptShift",
    "metrics": "Metric",
    "tracks": "Track",
}


@cache
def _found(kind: str) -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"persbench.{kind}"):
        other = points.get(point.name)
        if other is not None and other.value != point.value:
            raise PersbenchError(
                f"two packages register {kind[:-1]} {point.name!r}: {other.value} and {point.value}; uninstall one of them"
            )
        points[point.name] = point
    return points


def names(kind: str) -> list[str]:
    """All registered names of a kind ("methods", "personalizers", ...), sorted."""
    return sorted(_found(kind))


def nearest(name: str, candidates: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the closest candidate, or the list of all when none is close."""
    candidates = sorted(candidates)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(candidates)}"


def check(kind: str, name: str) -> None:
    """Raise UnknownNameError, with a suggestion, when nothing is registered under a name."""
    if name not in _found(kind):
        raise UnknownNameError(f"unknown {kind[:-1].replace('_', ' ')} {name!r}; {nearest(name, names(kind))}")


def load(kind: str, name: str) -> type:
    """The class registered under a name. Raises UnknownNameError, or PersbenchError when its module does not import."""
    check(kind, name)
    point = _found(kind)[name]
    try:
        plugin = point.load()
    except Exception as error:  # whatever a third party's module raises
        raise PersbenchError(f"{kind[:-1]} {name!r} ({point.value}) does not import: {type(error).__name__}: {error}") from error
    base: type
    if kind == "tracks":
        from persbench.tracks.base import Track

        base = Track
    else:
        base = getattr(contracts, BASES[kind])
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise PersbenchError(f"{kind[:-1]} {name!r} ({point.value}) is not a persbench {BASES[kind]} class")
    return plugin


def load_all(kind: str) -> dict[str, type]:
    """Every plug-in of a kind that imports; the others warn and are left out."""
    loaded = {}
    for name in names(kind):
        try:
            loaded[name] = load(kind, name)
        except PersbenchError as error:
            warnings.warn(str(error), stacklevel=2)
    return loaded


def configure(name: str, plugin: type, options: dict[str, Any]) -> Any:
    """An instance of a plug-in with `options` (numbers may be strings) over the defaults of its Config."""
    from pydantic import TypeAdapter, ValidationError

    known = {f.name for f in fields(plugin.Config)}  # type: ignore[attr-defined]
    for key in options:
        if key not in known:
            hint = nearest(key, known) if known else "it has none"
            raise UnknownNameError(f"{name} has no option {key!r}; {hint}")
    try:
        config = TypeAdapter(plugin.Config).validate_python(options)  # type: ignore[attr-defined]
    except ValidationError as error:
        first = error.errors()[0]
        raise PersbenchError(f"option {'.'.join(map(str, first['loc']))} of {name}: {first['msg']}") from None
    return plugin(config)


def option_names(kind: str, name: str) -> set[str]:
    """The names of a plug-in's options."""
    return {f.name for f in fields(load(kind, name).Config)}  # type: ignore[attr-defined]


def summary(kind: str, name: str) -> str:
    """First line of a plug-in's docstring, read from its source without importing it (or torch)."""
    point = _found(kind)[name]
    try:
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            return f"broken: no module {point.module}"
        tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    except (ImportError, OSError, SyntaxError) as error:
        return f"broken: {type(error).__name__}: {error}"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == point.attr:
            return (ast.get_docstring(node) or "").split("\n", 1)[0]
    return ""
