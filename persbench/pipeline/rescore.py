"""Scores from stored pictures: what a record's picture sets are, and its metrics again without training anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from persbench.contracts import Words
from persbench.errors import PersbenchError
from persbench.tracks.base import Track, TrackSubject

from .spec import Attack, Cell
from .stages import PICTURE_FILES, Group, Node, Pipeline, Prompts, Ref
from .store import Store

# Pictures depend on these parts of a protocol; scores of pictures of another one cannot be compared.
GENERATED_BY = "identifier template prompts pictures_per_prompt inference_steps guidance prior_pictures".split()


@dataclass(frozen=True)
class Asked:
    """A picture set: prompts (identifier left out), whom it imitates (None: nobody), and the class noun."""

    prompts: tuple[str, ...]
    target: TrackSubject | None
    class_noun: str


def asked_sets(pipeline: Pipeline, cell: Cell) -> dict[str, Asked]:
    """The picture sets that the record of a cell has, by label. Raises UnknownNameError for a subject that the track does not have."""
    track, protocol = pipeline.track, pipeline.track.protocol
    subject = track.subject(cell.subject)
    count = protocol.bystanders if cell.bystanders is None else cell.bystanders
    found: dict[str, Asked] = {}
    for prefix, target in [("", subject), *((f"bystander:{each.name}:", each) for each in track.bystanders(subject, count))]:
        prompts = pipeline.prompts(replace(track.words(target), identifier=""))
        found |= {f"{prefix}{label}": Asked(prompts, target, target.class_noun) for label in ("attacked", "control", "floor")}
    for noun in track.language.class_nouns:
        prompt = Words("", noun, protocol.template).class_prompt
        found |= {f"{label}:{noun}": Asked((prompt,) * protocol.prior_pictures, None, noun) for label in ("prior", "prior_base")}
    return found


def cell_of(record: Mapping[str, Any]) -> Cell:
    """The cell of a record. Raises PersbenchError for a record without one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Cell).validate_python(vars(Cell.from_dict(record["cell"])))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise PersbenchError(f"the record has no sound cell: {reason}")


def same_protocol(track: Track, record: Mapping[str, Any]) -> None:
    """Raise PersbenchError when the pictures of a record were made under another protocol than the track's."""
    ours, theirs = json.loads(json.dumps(asdict(track.protocol))), record.get("protocol", {})
    other = next((name for name in GENERATED_BY if ours[name] != theirs.get(name)), None)
    if other:
        raise PersbenchError(f"the pictures were generated under another protocol of the track ({other})")


def rescored(record: Mapping[str, Any], pipeline: Pipeline) -> Node:
    """The node that scores the stored pictures of a record with the present metrics. Raises PersbenchError where they are gone."""
    cell, store = cell_of(record), pipeline.store
    same_protocol(pipeline.track, record)
    asked, keys = asked_sets(pipeline, cell), record["pictures"]
    if set(asked) != set(keys):
        raise PersbenchError(f"the record has other picture sets than its cell: {', '.join(sorted(set(asked) ^ set(keys)))}")
    sets = {
        label: pipeline.wanted(_stored(store, "generate", keys[label]), Prompts.of(each.prompts), each.target, each.class_noun)
        for label, each in asked.items()
    }
    stages = {label: _stored(store, _stage(parts), record["stages"][label]["key"]) for label, parts in record["configs"].items()}
    subject, protection = pipeline.track.subject(cell.subject), stages.get("protect")
    changed = protection is not None and record["configs"]["protect"]["budget_levels"] is not None
    released = Ref(f"protect:{protection.key}", protection) if protection and changed else pipeline.published(subject)
    group = Group.of(Group.made(sets, stages))
    return pipeline.record(cell, Attack.parse(cell.attack), subject, group, released, Ref("", None))


def _stage(parts: Mapping[str, Any]) -> str:
    """The stage of a configuration, by what only it has."""
    stages = {"method": "protect", "countermeasure": "counter", "tamper": "tamper", "personalizer": "personalize"}
    return next(stage for kind, stage in stages.items() if kind in parts)


def _stored(store: Store, stage: str, key: str) -> Node:
    """A node whose artefact is there and which is never built."""
    found = store.find(stage, key)
    again = "run the cell again with --keep pictures"
    if found is None:
        raise PersbenchError(f"{stage} {key[:12]} is no longer in the store; {again}")
    if stage == "generate" and found.lacks(PICTURE_FILES):
        raise PersbenchError(f"its pictures were dropped (--keep records); {again}")

    def refuse(folder: Path) -> None:
        raise PersbenchError(f"{stage} {key[:12]} is no longer in the store; {again}")

    parts = {name: value for name, value in found.manifest["content"].items() if name not in ("stage", "format")}
    node = Node(stage, f"{stage} {key[:12]}", parts, refuse)
    if node.key != key:
        raise PersbenchError(f"{stage} {key[:12]} was made by another version of persbench; {again}")
    return node
