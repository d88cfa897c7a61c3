"""Keys of many cells: cells that differ in nothing but method and seed have plans of one form.

The first such cell is planned with marks in place of seed, method and protection. The canonical JSON of each of its stages then holds
these marks and the keys of other stages: holes, to be filled in for a cell.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from operator import attrgetter
from typing import NamedTuple

from persbench.errors import SkippedCell

from .keys import key_of_text, quoted
from .spec import Cell
from .stages import Node, Pipeline, Pipelines, Ref, walk
from .store import Store

SEED, METHOD, PROTECTION = 6_283_185_307_179_586_476, "<method>", "<protection>"
_HOLES = re.compile(f"({SEED}|{re.escape(METHOD)}|{re.escape(PROTECTION)}|[0-9a-f]{{40}})")
# What fills a hole changes with nothing, the seed, the protection (of one seed), or the cell: each has a table of what is known.
FIXED, SEEDED, RELEASED, OWN = range(4)
FILLED_KEPT = 100  # outlines whose holes for a seed are filled in
_MARKS = {str(SEED): SEEDED, PROTECTION: RELEASED, METHOD: OWN}
_SAME = attrgetter(*(field.name for field in fields(Cell) if field.name not in ("method", "seed")))
Table = dict[str, str]  # what fills a hole, by mark or by the key that the stage has in the marked plan


class Form(NamedTuple):
    """A stage of the marked plan: its text around the holes, and what is in them by table and name."""

    name: str  # its key in the marked plan
    kind: tuple[str, str]  # stage and plug-in
    table: int
    line: list[str]
    holes: list[tuple[int, int, str]]

    def for_seed(self, tables: tuple[Table, ...]) -> Form:
        """The form with what changes with nothing but the seed filled in."""
        filled, line, holes, begun = self.line.copy(), [], [], 0
        for at, table, name in self.holes:
            if table <= SEEDED:
                filled[at] = tables[table][name]
            else:
                line += ["".join(filled[begun:at]), ""]
                holes.append((len(line) - 1, table, name))
                begun = at + 1
        line.append("".join(filled[begun:]))
        return self._replace(line=line, holes=holes)


class Outline(NamedTuple):
    """All stages of the marked plan, each after those that it needs, by table; the name of the record."""

    forms: tuple[list[Form], ...]
    stages: int
    record: str


class Found(NamedTuple):
    """A planned cell: the key of its record, how many stages it has, and ((stage, plug-in), key) of those that no cell before it had."""

    record: str
    stages: int
    new: list[tuple[tuple[str, str], str]]


class Forms:
    """Plans many cells for their keys alone."""

    def __init__(self, store: Store) -> None:
        self.pipelines = Pipelines(store)
        self._outlines: dict[tuple, Outline] = {}
        self._forms: dict[str, Form] = {}  # by name
        self._fixed: Table = {}
        self._tables: dict[int | str, Table] = {}
        self._filled: dict[tuple[int, int], tuple[list[Form], ...]] = {}
        self._seen: set[str] = set()

    def plan(self, cell: Cell) -> Found:
        """The keys of a cell. Raises what `Pipeline.plan` raises."""
        pipeline = self.pipelines.of(cell)
        try:
            photos, model, protection = pipeline.protection(cell)
            outlined = (_SAME(cell), photos.node is not None, model.node is not None)
            outline = self._outlines.get(outlined)
            if outline is None:
                outline = self._outlines[outlined] = self._outline(pipeline, cell, photos, model)
        except SkippedCell:
            raise
        except (Exception, SystemExit):  # a plug-in may raise anything
            pipeline.plan(cell)  # says it in one line, with the cell's own names
            raise
        released = protection.key if protection else ""
        tables = (
            self._fixed,
            self._table(cell.seed, str(SEED), repr(cell.seed)),
            self._table(released, PROTECTION, released),
            {METHOD: quoted(cell.method)[1:-1]},
        )
        seen, new = self._seen, []
        if protection and released not in seen:
            seen.add(released)
            new.append((("protect", protection.plugin), released))

        def fill(forms: list[Form], table: Table) -> None:
            for name, kind, _, line, holes in forms:
                if name not in table:
                    for at, number, needed in holes:
                        line[at] = tables[number][needed]
                    key = table[name] = key_of_text("".join(line))
                    if key not in seen:
                        seen.add(key)
                        new.append((kind, key))

        shared = (id(outline), cell.seed)
        filled = self._filled.get(shared)
        if filled is None:
            for number in (FIXED, SEEDED):
                fill(outline.forms[number], tables[number])
            if len(self._filled) >= FILLED_KEPT:
                self._filled.clear()
            filled = self._filled[shared] = tuple([form.for_seed(tables) for form in outline.forms[number]] for number in (RELEASED, OWN))
        fill(filled[0], tables[RELEASED])
        fill(filled[1], tables[OWN])
        return Found(tables[OWN][outline.record], outline.stages + bool(protection), new)

    def _table(self, of: int | str, mark: str, filled: str) -> Table:
        """What is known for a seed or a protection."""
        found = self._tables.get(of)
        if found is None:
            found = self._tables[of] = {mark: filled}
        return found

    def _outline(self, pipeline: Pipeline, cell: Cell, photos: Ref, model: Ref) -> Outline:
        marked = Node("protect", "", {}, lambda folder: None)
        marked.key = PROTECTION
        released = [Ref(f"protect:{PROTECTION}", marked) if ref.node else ref for ref in (photos, model)]
        protection = marked if photos.node or model.node else None
        record = pipeline.plan_released(replace(cell, method=METHOD, seed=SEED), (released[0], released[1], protection))
        nodes = {node.key: node for node in (*walk(record), *record.scores()) if node.key != PROTECTION}
        outline = Outline(([], [], [], []), len(nodes), record.key)
        placed: set[str] = set()

        def place(name: str) -> Form:
            """The form of a stage, in the outline behind those that it needs."""
            form = self._forms.get(name)
            if name in placed:
                assert form is not None
                return form
            placed.add(name)
            if form is None:
                line = _HOLES.split(nodes[name].canonical())
                holes = []
                for at in range(1, len(line), 2):
                    if line[at] in _MARKS:
                        holes.append((at, _MARKS[line[at]], line[at]))
                    elif line[at] in nodes:
                        holes.append((at, place(line[at]).table, line[at]))
                table = max((table for _, table, _ in holes), default=FIXED)
                form = self._forms[name] = Form(name, (nodes[name].stage, nodes[name].plugin), table, line, holes)
            else:
                for _, _, needed in form.holes:
                    if needed in nodes:
                        place(needed)
            outline.forms[form.table].append(form)
            return form

        for name in nodes:
            place(name)
        return outline
