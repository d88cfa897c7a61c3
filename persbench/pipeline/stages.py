"""The stages of a cell: protect -> counter, tamper -> personalize -> generate -> score -> record.

`plan` turns a cell into nodes without running anything: a node's key is known from names, configurations, digests and seeds alone.
Running a node runs what it needs and no more; nodes with equal keys are one artefact, whoever asks.
"""

from __future__ import annotations

import gc
import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from persbench import pictures, registry
from persbench.contracts import Adversary, Budget, Evidence, Method, Metric, Personalizer, PictureSet, Release, Row, Subject, Tamper, Words
from persbench.errors import PersbenchError, SkippedCell
from persbench.progress import reporter
from persbench.provenance import cost, environment, source_digest
from persbench.tracks.base import Track, TrackSubject

from .checks import check_model, check_pictures, check_rows, lent, planning
from .keys import HOLE, Frozen, Template, compose, key_of_text, quoted, thaw
from .spec import Attack, Cell, Part, seed_of
from .store import FATAL, Artefact, Store, StoreError, digest, file_digest

if TYPE_CHECKING:
    from persbench.diffusion import DiffusionModel

# Raise a stage's number when its meaning changes: old artefacts are then left alone and made again.
FORMATS = {"protect": 1, "counter": 1, "tamper": 1, "personalize": 1, "generate": 1, "score": 1, "record": 1}
WEIGHTS, ROWS = "weights.safetensors", "rows.json"
MODELS_KEPT = 3
PLANS_KEPT = 20_000  # nodes and what they are made of that planning remembers
PLUGINS = {"protect": "method", "counter": "countermeasure", "tamper": "tamper", "personalize": "personalizer", "score": "metric"}
T = TypeVar("T")
# Files that a stage reads of its inputs. What `--keep` dropped is made again only for a stage that reads it.
PICTURE_FILES, WEIGHT_FILES, NO_FILES = frozenset({".png"}), frozenset({".safetensors"}), frozenset[str]()
READS = {
    "protect": NO_FILES,
    "counter": PICTURE_FILES,
    "tamper": PICTURE_FILES | WEIGHT_FILES,
    "personalize": PICTURE_FILES | WEIGHT_FILES,
    "generate": WEIGHT_FILES,
    "score": PICTURE_FILES,
    "record": PICTURE_FILES,
}


def plugin_name(stage: str, content: Mapping[str, Any]) -> str:
    """The plug-in that a stage's key content, as a manifest has it, names; "" where there is none."""
    return content[PLUGINS[stage]]["name"] if stage in PLUGINS else ""


class StageError(PersbenchError):
    """A stage failed; the message names it and what was raised."""


@dataclass(eq=False, slots=True)
class Node:
    """A stage to be run: what its key is made of, what it needs, and how it is built."""

    stage: str
    title: str
    parts: dict[str, Any]
    build: Callable[[Path], dict[str, Any] | None] = field(repr=False)
    inputs: tuple[Node, ...] = ()
    plugin: str = ""  # the name of the plug-in at work
    uses: str = ""  # the model that it works on, by Ref.id
    text: InitVar[str] = ""  # canonical JSON of `content`, where the caller has it
    scores: Callable[[], list[Node]] = field(default=list, repr=False)  # a record's; it runs them by itself
    key: str = field(init=False)  # of the artefact

    def __post_init__(self, text: str) -> None:
        self.key = key_of_text(text or self.canonical())

    def canonical(self) -> str:
        """Canonical JSON of `content`."""
        return compose({"stage": self.stage, "format": FORMATS[self.stage], **self.parts})

    @property
    def content(self) -> dict[str, Any]:
        """What the key is a hash of."""
        return thaw({"stage": self.stage, "format": FORMATS[self.stage], **self.parts})

    def run(self, store: Store, kinds: frozenset[str] = NO_FILES) -> Artefact:
        """The artefact, from the store or built now with all it needs; its files of `kinds` are there, others may have been dropped.

        Whatever a plug-in raises comes out as StageError; a store that cannot be written raises StoreError.
        """
        found = store.find(self.stage, self.key)
        if found and found.manifest.get("complete", True) and not found.lacks(kinds):
            return found
        if found and not found.manifest.get("complete", True):  # a record with error rows: whatever failed gets another chance
            store.remove(self.stage, self.key)
        for needed in self.inputs:
            needed.run(store, READS[self.stage])

        def build(folder: Path) -> dict[str, Any]:
            reporter().stage(self.title)
            if reporter().why:
                reporter().note(f"because: {store.explain(self.stage, self.content)}")
            with cost() as spent, swept():
                try:
                    notes = self.build(folder) or {}
                except (StageError, StoreError):
                    raise
                except (Exception, SystemExit) as error:  # a plug-in may raise anything; it becomes a value of this cell
                    if isinstance(error, OSError) and error.errno in FATAL:
                        raise
                    message = str(error).strip().splitlines()[0] if str(error).strip() else ""
                    name = "" if isinstance(error, PersbenchError) else f"{type(error).__name__}: "
                    raise StageError(f"{self.title}: {name}{message}") from error
            return {"cost": spent, "provenance": environment(), **notes}

        return store.get(self.stage, self.content, build, kinds)


@contextmanager
def swept() -> Iterator[None]:
    """Collects what the block leaves behind in cycles, as models do, and that alone: a look at everything in memory takes 0.4 s."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


@dataclass(frozen=True)
class Ref:
    """Photos or a model as a stage takes them: a name for the key, and where they come from."""

    id: str
    node: Node | None  # None: the published photos, or the base model


class Prompts(NamedTuple):
    """Prompts of a picture set, with what keys say about them."""

    texts: tuple[str, ...]
    frozen: Frozen
    digest: str

    @classmethod
    def of(cls, texts: tuple[str, ...]) -> Prompts:
        """Prompts of these texts."""
        listed = list(texts)
        return cls(texts, Frozen(listed), digest(listed))


class Said(NamedTuple):
    """The words of an adversary, what keys say about them, and the evaluation prompts for them."""

    words: Words
    frozen: Frozen
    prompts: Prompts


class Configured(NamedTuple):
    """A plug-in with its configuration, and what keys say about it."""

    plugin: Any
    identity: Frozen

    def fresh(self) -> Any:
        """An instance of its own for a stage: plug-ins may keep state, stages must not share any."""
        return type(self.plugin)(self.plugin.config)


class Wanted(NamedTuple):
    """A picture set of a cell, whom it imitates, and what keys of scores say about it."""

    node: Node
    prompts: tuple[str, ...]
    target: TrackSubject | None
    noun: str
    frozen: Frozen


class Group(NamedTuple):
    """Picture sets by label, the stages on the way, all their nodes by key, and by label what keys of scores say."""

    sets: dict[str, Wanted]
    stages: dict[str, Node]
    nodes: dict[str, Node]
    items: list[tuple[str, str]]

    @classmethod
    def made(cls, sets: dict[str, Wanted], stages: dict[str, Node] | None = None) -> Group:
        """A group of sets and stages."""
        nodes = {node.key: node for node in (*(wanted.node for wanted in sets.values()), *(stages or {}).values())}
        return cls(sets, stages or {}, nodes, [(label, f"{quoted(label)}:{wanted.frozen.text}") for label, wanted in sets.items()])

    @classmethod
    def of(cls, *groups: Group) -> Group:
        """All of some groups."""
        sets, stages, nodes, items = {**groups[0].sets}, {**groups[0].stages}, {**groups[0].nodes}, [*groups[0].items]
        for group in groups[1:]:
            sets |= group.sets
            stages |= group.stages
            nodes |= group.nodes
            items += group.items
        return cls(sets, stages, nodes, sorted(items))

    def frozen(self) -> Frozen:
        """The sets as they stand in keys of scores."""
        values = {label: wanted.frozen for label, wanted in self.sets.items()}
        return Frozen(values, f"{{{','.join([text for _, text in self.items])}}}")


class Pipeline:
    """Plans and runs cells of one track and base model on one store. Equal sub-plans are one node, as long as they are remembered."""

    def __init__(self, track_name: str, base: str, store: Store, precision: str = "fp32", device: str = "cpu", protocol: str = "") -> None:
        self.track: Track = registry.load("tracks", track_name)().changed(protocol)
        self.track_name, self.store, self.precision, self.device = track_name, store, precision, device
        self.base_folder = Path(base) if base else self.track.base
        self._models: OrderedDict[str, DiffusionModel] = OrderedDict()
        self._digests: dict[Path, str] = {}
        self._plugins: dict[tuple, Configured | SkippedCell] = {}
        self._plans: dict[tuple, Any] = {}

    def node(self, cell: Cell, key: str) -> Node:
        """A stage of a cell by its key. Raises PersbenchError when the code has changed since somebody else planned it."""
        for node in walk(self.plan(cell)):
            if node.key == key:
                return node
        raise PersbenchError("code or data changed while the run was going on; start it again")

    def _once(self, key: tuple, make: Callable[[], T]) -> T:
        """What `make` returned when it was last called for this key: the memory of planning, forgotten as a whole when it is full."""
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            found = self._plans[key] = make()
        return found

    def _parts(self, stage: str, name: tuple, static: Callable[[], dict[str, Any]], **given: Any) -> tuple[dict[str, Any], str]:
        """Parts of a stage, and their canonical JSON: `static` ones, the same for all stages of this name, and the given ones."""

        def make() -> tuple[dict[str, Any], Template]:
            parts = static()
            return parts, Template({"stage": stage, "format": FORMATS[stage], **parts}, *given)

        parts, template = self._once(("parts", stage, *name), make)
        return {**parts, **given}, template.text(given)

    def release_memory(self) -> None:
        """Let go of the models and judges; they are loaded again when they are needed."""
        self._models.clear()
        for name in ("base", "evaluators"):
            self.__dict__.pop(name, None)

    # --- what keys are made of

    @cached_property
    def base_digest(self) -> str:
        """Digest of the base model's folder. Raises PersbenchError when it is no folder."""
        from persbench.diffusion.model import folder_digest

        if not self.base_folder.is_dir():
            raise PersbenchError(f"base model {self.base_folder} is not a folder; give a diffusers pipeline folder with --base")
        return folder_digest(self.base_folder)[:40]

    @cached_property
    def _base(self) -> Ref:
        return Ref(f"base:{self.base_digest}", None)

    @cached_property
    def _evaluator_digest(self) -> str:
        return self.track.evaluator_digest()

    @cached_property
    def _subjects(self) -> dict[str, TrackSubject]:
        return {subject.name: subject for subject in self.track.subjects()}

    def _subject(self, name: str) -> TrackSubject:
        return self._subjects[name] if name in self._subjects else self.track.subject(name)

    def _photos_digest(self, paths: Sequence[Path]) -> str:
        for path in paths:
            if path not in self._digests:
                try:
                    self._digests[path] = file_digest(path)
                except OSError as error:
                    raise PersbenchError(f"photo {path} cannot be read: {error.strerror}") from None
        return digest([self._digests[path] for path in paths])

    def _plugin(self, kind: str, name: str, cell: Cell, written: tuple[tuple[str, str], ...] = ()) -> Configured:
        key = (kind, name, cell.options, written)
        found = self._plugins.get(key)
        if found is None:
            options = {**self.track.protocol.options.get(name, {}), **cell.options_of(name), **dict(written)}
            plugin = registry.configure(name, registry.load(kind, name), options)
            reason = plugin.missing(self.base_folder)
            unavailable = SkippedCell(f"{name} is not available: {reason}")
            found = self._plugins[key] = unavailable if reason else Configured(plugin, Frozen(self._identity(name, plugin)))
        if isinstance(found, SkippedCell):
            raise found
        return found

    @staticmethod
    def _identity(name: str, plugin: Any) -> dict[str, Any]:
        return {"name": name, "config": asdict(plugin.config), "source": source_digest(plugin.__class__)}

    def _runtime(self) -> dict[str, str]:
        return {"precision": self.precision, "device": self.device.split(":")[0]}

    # --- models and photos in memory

    @cached_property
    def size(self) -> int:
        """Pixels a side that the base model takes."""
        return self.base.picture_size

    @cached_property
    def base(self) -> DiffusionModel:
        """The base model, loaded."""
        from persbench.diffusion import DiffusionModel

        return DiffusionModel.load(self.base_folder, self.precision, self.device)  # type: ignore[arg-type]

    def model(self, ref: Ref) -> DiffusionModel:
        """The model of a reference; the last few stay in memory."""
        if ref.node is None:
            return self.base
        if ref.id in self._models:
            self._models.move_to_end(ref.id)
            return self._models[ref.id]
        from safetensors.torch import load_file

        artefact = ref.node.run(self.store, WEIGHT_FILES)
        origin = self.base
        changed = load_file(artefact.path(WEIGHTS))
        model = origin.with_weights(changed)
        self._models[ref.id] = model
        while len(self._models) > MODELS_KEPT:
            self._models.popitem(last=False)
        return model

    def photos(self, ref: Ref, subject: TrackSubject) -> torch.Tensor:
        """The photos of a reference as they lie on disk, (N, 3, H, W) in [0, 1]."""
        if ref.node is None:
            return pictures.read(subject.published, self.size)
        folder = ref.node.run(self.store, PICTURE_FILES).folder
        return pictures.read(sorted(folder.glob(f"{subject.name}-*.png")))

    @cached_property
    def evaluators(self) -> Any:
        """The judges of the track, loaded once."""
        return self.track.evaluators()

    # --- nodes

    def protect(self, cell: Cell, subject: TrackSubject) -> tuple[Ref, Ref, Node | None]:
        """Released photos and model of a method, and its node (None when the method changes nothing)."""
        key = ("protect", cell.method, cell.group or subject.name, subject.name, cell.seed, cell.budget, cell.options)
        return self._once(key, lambda: self._protect(cell, subject))

    def _protect(self, cell: Cell, subject: TrackSubject) -> tuple[Ref, Ref, Node | None]:
        published, base = self.published(subject), self._base
        configured = self._plugin("methods", cell.method, cell)
        method: Method = configured.plugin
        if not method.changes:
            return published, base, None
        group = [self._subject(name) for name in cell.group or (subject.name,)]
        levels = cell.budget if cell.budget is not None else getattr(method.config, "budget_levels", None)
        budget = Budget(levels if levels is not None else self.track.standard_budget)
        parts = {
            "method": configured.identity,
            "subjects": self._once(("protected", *(s.name for s in group)), lambda: Frozen([self._protected(s) for s in group])),
            "language": self._once(("language",), lambda: Frozen(asdict(self.track.language))),
            "base": self.base_digest,
            "budget_levels": budget.levels if "photos" in method.changes else None,
            "seed": cell.seed,
            **self._runtime(),
        }

        def build(folder: Path) -> None:
            given = [Subject(s.name, pictures.read(s.published, self.size), self.track.words(s), self.track.language) for s in group]
            for each in given:
                self.base.identifier_tokens(each.words.identifier, each.words.instance_prompt)
            rng = torch.Generator().manual_seed(seed_of("protect", cell.method, *(s.name for s in group), cell.seed))
            with lent(self, cell.method, self._base):
                release = configured.fresh().protect(given, self.base, budget, rng)
            if not isinstance(release, Release):
                raise PersbenchError(f"{cell.method} must return a Release; it returned {type(release).__name__}")
            if "photos" in method.changes:
                for each in given:
                    photos = release.photos.get(each.name)
                    check_photos(cell.method, each.photos, photos, budget)
                    assert photos is not None
                    pictures.save(photos, folder, each.name)
            if "model" in method.changes:
                if release.model is None:
                    raise PersbenchError(f"{cell.method} says that it changes the model and released none")
                save_weights(release.model, self.base, folder, cell.method)

        names = " and ".join(s.name for s in group) if len(group) < 3 else f"{len(group)} subjects"
        node = Node("protect", f"protect {names} with {cell.method}", parts, build, plugin=cell.method)
        return (
            Ref(f"protect:{node.key}", node) if "photos" in method.changes else published,
            Ref(f"protect:{node.key}", node) if "model" in method.changes else base,
            node,
        )

    def _protected(self, subject: TrackSubject) -> dict[str, Any]:
        """A subject as it stands in the key of its protection."""
        return {"name": subject.name, "photos": self.published(subject).id, "words": asdict(self.track.words(subject))}

    def published(self, subject: TrackSubject) -> Ref:
        """The photos of a subject before any protection."""
        return self._once(("published", subject.name), lambda: Ref(f"published:{self._photos_digest(subject.published)}", None))

    def class_pictures(self, cell: Cell, noun: str) -> Node:
        """Pictures of a class by the public model, once for a base model."""
        prompts = self._class_prompts(noun, self.track.protocol.class_pictures)
        return self.generate(replace(cell, seed=0), f"generate class pictures {noun}", self._base, prompts, f"class:{noun}")

    def _class_prompts(self, noun: str, count: int) -> Prompts:
        words = Words("", noun, self.track.protocol.template)
        return self._once(("class prompts", noun, count), lambda: Prompts.of((words.class_prompt,) * count))

    def adversary(self, cell: Cell, subject: TrackSubject | None) -> Adversary:
        """What the adversary has besides the release; nothing of a subject for what all subjects share."""

        def drawn(noun: str) -> torch.Tensor:
            return pictures.read(sorted(self.class_pictures(cell, noun).run(self.store, PICTURE_FILES).folder.glob("*.png")))

        clean = pictures.read(subject.spares, self.size) if subject else torch.empty(0, 3, self.size, self.size)
        return Adversary(self.base, clean, self.track.language, drawn)

    def _means(self, cell: Cell, plugin: Tamper | Personalizer) -> tuple[Node, ...]:
        """The class pictures that a part of an attack needs, so that they are there before it."""
        if not plugin.uses_class_pictures:
            return ()
        return tuple(self.class_pictures(cell, noun) for noun in self.track.language.class_nouns)

    def counter(self, cell: Cell, part: Part, photos: Ref, subject: TrackSubject) -> Ref:
        """The photos after a countermeasure."""
        return self._once(
            ("counter", part, photos.id, subject.name, cell.seed, cell.options), lambda: self._counter(cell, part, photos, subject)
        )

    def _counter(self, cell: Cell, part: Part, photos: Ref, subject: TrackSubject) -> Ref:
        configured = self._plugin("countermeasures", part.name, cell, part.options)

        def static() -> dict[str, Any]:
            return {
                "countermeasure": configured.identity,
                "clean_photos": self._photos_digest(subject.spares),
                "subject": subject.name,
                "base": self.base_digest,
                **self._runtime(),
            }

        parts, text = self._parts("counter", (part, subject.name, cell.options), static, photos=photos.id, seed=cell.seed)

        def build(folder: Path) -> None:
            given = self.photos(photos, subject)
            rng = torch.Generator().manual_seed(seed_of("counter", part, subject.name, cell.seed))
            with lent(self, part.name, self._base):
                result = configured.fresh().apply(given, self.adversary(cell, subject), rng)
            check_pictures(part.name, result, given)
            pictures.save(result, folder, subject.name)

        needs = (photos.node,) if photos.node else ()
        node = Node("counter", f"{part} on photos of {subject.name}", parts, build, needs, part.name, text=text)
        return Ref(f"counter:{node.key}", node)

    def tamper(self, cell: Cell, part: Part, model: Ref) -> Ref:
        """The model after the adversary tampered with it; the same for all subjects."""
        return self._once(("tamper", part, model.id, cell.seed, cell.options), lambda: self._tamper(cell, part, model))

    def _tamper(self, cell: Cell, part: Part, model: Ref) -> Ref:
        configured = self._plugin("tampers", part.name, cell, part.options)
        if not configured.plugin.changes_model:
            return model
        means = self._means(cell, configured.plugin)
        parts = {
            "tamper": configured.identity,
            "model": model.id,
            "class_pictures": [node.key for node in means],
            "base": self.base_digest,
            "seed": cell.seed,
            **self._runtime(),
        }

        def build(folder: Path) -> None:
            rng = torch.Generator().manual_seed(seed_of("tamper", part, cell.seed))
            start = self.model(model)
            with lent(self, part.name, model, self._base):
                tampered = configured.fresh().tamper(start, self.adversary(cell, None), rng)
            save_weights(tampered, self.base, folder, part.name)

        needs = ((model.node,) if model.node else ()) + means
        node = Node("tamper", f"{part} on the released model", parts, build, needs, part.name, model.id)
        return Ref(f"tamper:{node.key}", node)

    def _personalizer(self, cell: Cell, attack: Attack) -> Configured:
        """The personalizer of an attack, configured as its tampers say."""
        configured = self._plugin("personalizers", attack.personalizer.name, cell, attack.personalizer.options)
        personalizer: Personalizer = configured.plugin
        if not personalizer.trains or not attack.tampers:
            return configured
        for part in attack.tampers:
            tamper: Tamper = self._plugin("tampers", part.name, cell, part.options).plugin
            personalizer = type(personalizer)(tamper.train(personalizer.config))
        return Configured(personalizer, Frozen(self._identity(attack.personalizer.name, personalizer)))

    def _said(self, cell: Cell, attack: Attack, personalizer: Personalizer, subject: TrackSubject) -> Said:
        words, language = self.track.words(subject), self.track.language
        if attack.prompt_shift:
            shift = self._plugin("prompt_shifts", attack.prompt_shift.name, cell, attack.prompt_shift.options)
            words = shift.fresh().shift(words, language)
        words = personalizer.words(words, language) if personalizer.trains else replace(words, identifier="")
        return Said(words, Frozen(asdict(words)), Prompts.of(self.prompts(words)))

    def personalize(self, cell: Cell, attack: Attack, photos: Ref, model: Ref, subject: TrackSubject) -> tuple[Ref, Said]:
        """The model that has learned the photos, and the words that the adversary used."""
        configured = self._once(("personalizer", cell.attack, cell.options), lambda: self._personalizer(cell, attack))
        said = self._once(("said", cell.attack, cell.options, subject.name), lambda: self._said(cell, attack, configured.fresh(), subject))
        if not configured.plugin.trains:
            return model, said
        words, means = said.words, self._means(cell, configured.plugin)

        def static() -> dict[str, Any]:
            return {
                "personalizer": configured.identity,
                "words": said.frozen,
                "class_pictures": [node.key for node in means],
                "base": self.base_digest,
                **self._runtime(),
            }

        name = (cell.attack, subject.name, cell.options)
        parts, text = self._parts("personalize", name, static, photos=photos.id, model=model.id, seed=cell.seed)

        def build(folder: Path) -> dict[str, Any]:
            start = self.model(model)
            ids = start.identifier_tokens(words.identifier, words.instance_prompt)
            # The same noise and order for every release, so that a method is compared with its own control.
            rng = torch.Generator().manual_seed(seed_of("personalize", attack.personalizer, subject.name, cell.seed))
            with lent(self, attack.personalizer.name, model, self._base):
                result = configured.fresh().personalize(self.photos(photos, subject), words, start, self.adversary(cell, subject), rng)
            save_weights(result, self.base, folder, attack.personalizer.name)
            return {"identifier_tokens": ids}

        needs = tuple(ref.node for ref in (photos, model) if ref.node) + means
        personalizer = attack.personalizer
        node = Node("personalize", f"{personalizer} on {subject.name}", parts, build, needs, personalizer.name, model.id, text)
        return Ref(f"personalize:{node.key}", node), said

    def generate(self, cell: Cell, title: str, model: Ref, prompts: Prompts, noise: str) -> Node:
        """Pictures of prompts; sets with the same `noise` name start from the same noise."""
        key = ("generate", model.id, prompts.digest, noise, cell.seed)
        return self._once(key, lambda: self._generate(cell, title, model, prompts, noise))

    def _generate(self, cell: Cell, title: str, model: Ref, prompts: Prompts, noise: str) -> Node:
        protocol = self.track.protocol

        def static() -> dict[str, Any]:
            from persbench.diffusion import DiffusionModel

            return {
                "prompts": prompts.frozen,
                "inference_steps": protocol.inference_steps,
                "guidance": protocol.guidance,
                "source": source_digest(DiffusionModel),
                **self._runtime(),
            }

        parts, text = self._parts("generate", (prompts.digest,), static, model=model.id, noise=noise, seed=cell.seed)

        def build(folder: Path) -> None:
            rng = torch.Generator().manual_seed(seed_of("generate", noise, cell.seed))
            sampled = self.model(model).sample(prompts.texts, rng, inference_steps=protocol.inference_steps, guidance=protocol.guidance)
            if not torch.isfinite(sampled).all():
                raise PersbenchError("the model generates pictures that are not finite")
            pictures.save(sampled, folder, "picture")

        return Node("generate", title, parts, build, (model.node,) if model.node else (), uses=model.id, text=text)

    def prompts(self, words: Words) -> tuple[str, ...]:
        """The evaluation prompts for the words of an adversary; without identifier those of the class."""
        protocol = self.track.protocol
        phrase = f"{words.identifier} {words.class_noun}" if words.identifier else f"a {words.class_noun}"
        asked = [p.replace(protocol.template, words.template, 1) if p.startswith(protocol.template) else p for p in protocol.prompts]
        return tuple(p.format(phrase) for p in asked for _ in range(protocol.pictures_per_prompt))

    @planning
    def plan(self, cell: Cell) -> Node:
        """The record node of a cell; everything else hangs below it. Raises PersbenchError for what cannot be planned."""
        return self.plan_released(cell, self.protection(cell))

    def protection(self, cell: Cell) -> tuple[Ref, Ref, Node | None]:
        """Released photos and model of a cell's method, and its node (None when the method changes nothing)."""
        return self.protect(cell, self._subject(cell.subject))

    def plan_released(self, cell: Cell, release: tuple[Ref, Ref, Node | None]) -> Node:
        """The record node of a cell whose method releases these photos and this model."""
        attack = self._once(("attack", cell.attack), lambda: Attack.parse(cell.attack))
        subject = self._subject(cell.subject)
        released_photos, released_model, protection = release
        own = self._attacked(cell, attack, subject, released_photos, released_model, "attacked")
        key = ("others", cell.attack, subject.name, cell.bystanders, released_model.id, cell.seed, cell.options)
        others = self._once(key, lambda: self._others(cell, attack, subject, released_model))
        protected = Group({}, {"protect": protection}, {protection.key: protection}, []) if protection else Group({}, {}, {}, [])
        return self.record(cell, attack, subject, Group.of(own, others, protected), released_photos, released_model)

    def _others(self, cell: Cell, attack: Attack, subject: TrackSubject, released: Ref) -> Group:
        """All sets but that of the attack on the subject itself: an image-level method has those of every other one."""
        groups = [self._undefended(cell, attack, subject, "")]
        count = self.track.protocol.bystanders if cell.bystanders is None else cell.bystanders
        for bystander in self._once(("bystanders", subject.name, count), lambda: self.track.bystanders(subject, count)):
            prefix = f"bystander:{bystander.name}:"
            groups.append(self._attacked(cell, attack, bystander, self.published(bystander), released, f"{prefix}attacked"))
            groups.append(self._undefended(cell, attack, bystander, prefix))
        return Group.of(*groups, self._once(("priors", released.id, cell.seed), lambda: self._priors(cell, released)))

    def _undefended(self, cell: Cell, attack: Attack, target: TrackSubject, prefix: str) -> Group:
        """Control and floor of somebody."""

        def make() -> Group:
            prompts, label = self._asked(target), f"{prefix}floor"
            node = self.generate(cell, f"generate {label} {target.class_noun}", self._base, prompts, target.class_noun)
            floor = Group.made({label: self.wanted(node, prompts, target, target.class_noun)})
            return Group.of(self._attacked(cell, attack, target, self.published(target), self._base, f"{prefix}control"), floor)

        return self._once(("undefended", cell.attack, target.name, prefix, cell.seed, cell.options), make)

    def _priors(self, cell: Cell, released: Ref) -> Group:
        """Class pictures of the released and of the base model."""
        sets = {}
        for noun in self.track.language.class_nouns:
            prompts = self._class_prompts(noun, self.track.protocol.prior_pictures)
            for label, model in (("prior", released), ("prior_base", self._base)):
                node = self.generate(cell, f"generate {label} {noun}", model, prompts, f"prior:{noun}")
                sets[f"{label}:{noun}"] = self.wanted(node, prompts, None, noun)
        return Group.made(sets)

    def _attacked(self, cell: Cell, attack: Attack, target: TrackSubject, photos: Ref, model: Ref, label: str) -> Group:
        """The picture set that an attack ends in, and the stages on the way."""
        key = ("attacked", cell.attack, target.name, photos.id, model.id, label, cell.seed, cell.options)
        return self._once(key, lambda: self._attack(cell, attack, target, photos, model, label))

    def _attack(self, cell: Cell, attack: Attack, target: TrackSubject, photos: Ref, model: Ref, label: str) -> Group:
        stages: dict[str, Node] = {}
        for part in attack.countermeasures:
            photos = self.counter(cell, part, photos, target)
            if photos.node:
                stages[f"{label}:{part}"] = photos.node
        for part in attack.tampers:
            model = self.tamper(cell, part, model)
            if model.node and model.node.stage == "tamper":
                stages[f"{label}:{part}"] = model.node
        tuned, said = self.personalize(cell, attack, photos, model, target)
        if tuned.node:
            stages[f"{label}:personalize"] = tuned.node
        node = self.generate(cell, f"generate {label} {target.name}", tuned, said.prompts, target.class_noun)
        return Group.made({label: self.wanted(node, self._asked(target), target, target.class_noun)}, stages)

    def _asked(self, target: TrackSubject) -> Prompts:
        """The evaluation prompts of a subject without identifier: what its pictures are held against."""
        return self._once(("asked", target.name), lambda: Prompts.of(self.prompts(replace(self.track.words(target), identifier=""))))

    def wanted(self, node: Node, prompts: Prompts, target: TrackSubject | None, noun: str) -> Wanted:
        """A picture set of a cell."""
        references = self._once(("references", target.name), lambda: self._photos_digest(target.references)) if target else ""
        frozen = Frozen({"pictures": node.key, "references": references, "prompts": prompts.digest})
        return Wanted(node, prompts.texts, target, noun, frozen)

    def _metrics(self, cell: Cell) -> dict[str, Configured]:
        return {name: self._plugin("metrics", name, cell) for name in registry.load_all("metrics")}

    def record(
        self,
        cell: Cell,
        attack: Attack,
        subject: TrackSubject,
        group: Group,
        released: Ref,
        model: Ref,
    ) -> Node:
        """The record node over a cell's picture sets and stages; `released`, `model`: what the method gave to the world."""
        metrics: dict[str, Configured] = self._once(("metrics", cell.options), lambda: self._metrics(cell))
        sets, stages, inputs = group.sets, group.stages, tuple(group.nodes.values())
        judges = {"evaluators": self._evaluator_digest}
        given = {"sets": group.frozen(), "published": self.published(subject).id, "released": released.id}
        shared_parts, text = self._parts("score", (), lambda: judges, **given, metric=HOLE)
        before, after = text.split(HOLE.text)
        score_texts = {name: f"{before}{metric.identity.text}{after}" for name, metric in metrics.items()}

        def evidence() -> Evidence:
            found = {}
            for label, (node, prompts, target, noun, _) in sets.items():
                files = sorted(node.run(self.store, PICTURE_FILES).folder.glob("*.png"))
                references = pictures.read(target.references, self.size) if target else None
                found[label] = PictureSet(pictures.read(files), prompts, references, noun)
            return Evidence(found, pictures.read(subject.published, self.size), self.photos(released, subject))

        shared: list[Evidence] = []

        def scoring(name: str, configured: Configured) -> Node:
            def build(folder: Path) -> None:
                if not shared:
                    shared.append(evidence())
                metric: Metric = configured.fresh()
                rows = check_rows(name, metric, metric.measure(shared[0], self.evaluators), shared[0])
                (folder / ROWS).write_text(json.dumps([asdict(row) for row in rows]), "utf-8")

            parts = {**shared_parts, "metric": configured.identity}
            return Node("score", f"score {name}", parts, build, inputs, name, text=score_texts[name])

        def build(folder: Path) -> dict[str, Any]:
            rows: list[dict[str, Any]] = []
            spent = {}
            for name, configured in metrics.items():
                try:
                    rows += json.loads(scoring(name, configured).run(self.store).path(ROWS).read_text("utf-8"))
                except StageError as error:  # a metric that fails is an error row, never a score
                    rows.append(asdict(Row(name, "", 0, None, str(error))))
            tokens = {}
            for label, node in stages.items():
                manifest = node.run(self.store).manifest
                spent[label] = {"key": node.key, **manifest["cost"]}
                if "identifier_tokens" in manifest:
                    tokens[label] = manifest["identifier_tokens"]
            record = {
                "status": "ok",
                "cell": cell.to_dict(),
                "attack": asdict(attack),
                "base_digest": self.base_digest,
                "evaluators": self._evaluator_digest,
                "protocol": asdict(self.track.protocol),
                "margin": self.track.protocol.margin,
                "configs": {name: thaw(node.parts) for name, node in stages.items()},
                "stages": spent,
                "pictures": {label: node.key for label, (node, *_) in sets.items()},
                "identifier_tokens": tokens,
                "rows": rows,
                "provenance": environment(),
            }
            (folder / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")
            self._sheet(sets, subject, released, folder / "pictures.png")
            return {"complete": all(row["value"] is not None for row in rows)}

        scores = {name: key_of_text(text) for name, text in score_texts.items()}
        parts, text = self._parts("record", (), dict, cell=self._cell(cell), scores=scores)
        title = f"{cell.method} · {cell.attack} · {cell.subject}"

        def every_score() -> list[Node]:
            return [scoring(name, configured) for name, configured in metrics.items()]

        return Node("record", title, parts, build, inputs, uses=model.id, text=text, scores=every_score)

    def _cell(self, cell: Cell) -> Frozen:
        """A cell as it stands in the key of its record."""
        plain, changing = cell.to_dict(), ("method", "attack", "subject", "group", "seed")
        name = ("cell", cell.options, cell.budget, cell.bystanders)
        template: Template = self._once(name, lambda: Template(plain, *changing))
        return Frozen(plain, template.text(plain))

    def _sheet(self, sets: Mapping[str, Wanted], subject: TrackSubject, released: Ref, path: Path) -> None:
        rows = [pictures.read(subject.published, self.size), self.photos(released, subject)]
        for label in ("control", "attacked", *(name for name in sets if name.endswith((":control", ":attacked")))):
            rows.append(pictures.read(sorted(sets[label].node.run(self.store, PICTURE_FILES).folder.glob("*.png"))))
        pictures.sheet(rows, path)


def walk(node: Node) -> list[Node]:
    """A stage and all that it needs, each once; scores, which records make by themselves, are not among them."""
    found: dict[str, Node] = {}
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each.key not in found:
            found[each.key] = each
            waiting += each.inputs
    return [*found.values()]


@contextmanager
def no_collection() -> Iterator[None]:
    """Planning makes many small objects and no cycles: looking for some takes longer than planning itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Pipelines:
    """The pipelines of a run with several tracks or base models; one of them has its models in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._made: dict[tuple[str, ...], Pipeline] = {}
        self._loaded: Pipeline | None = None

    @staticmethod
    def name(cell: Cell) -> tuple[str, ...]:
        """What tells one pipeline from another."""
        return cell.track, cell.base, cell.precision, cell.device, cell.protocol

    def of(self, cell: Cell) -> Pipeline:
        """The pipeline of a cell, for planning."""
        name = self.name(cell)
        if name not in self._made:
            self._made[name] = Pipeline(cell.track, cell.base, self.store, cell.precision, cell.device, cell.protocol)
        return self._made[name]

    def at_work(self, cell: Cell) -> Pipeline:
        """The pipeline of a cell, for running its stages: the one before it lets go of its models."""
        chosen = self.of(cell)
        if self._loaded is not None and self._loaded is not chosen:
            self._loaded.release_memory()
        self._loaded = chosen
        return chosen


def check_photos(name: str, before: torch.Tensor, after: torch.Tensor | None, budget: Budget) -> None:
    """Raise PersbenchError unless released photos are finite, of the same shape, and within budget as saved."""
    check_pictures(name, after, before)
    assert after is not None
    change = (pictures.to_levels(after).int() - pictures.to_levels(before).int()).abs().max().item()
    if change > budget.levels + 0.5:
        raise PersbenchError(f"{name} changed a photo by {change} levels; its budget is {budget.levels:g}")


def save_weights(model: DiffusionModel, base: DiffusionModel, folder: Path, name: str) -> None:
    """Store the weights in which a model differs from the base model."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_model(name, model)
    changed = model.difference(base)
    bad = next((n for n, tensor in changed.items() if not torch.isfinite(tensor).all()), None)
    if bad:
        raise PersbenchError(f"{name} left weights that are not finite: {bad}")
    if not changed:
        warnings.warn(f"{name} changed no weight", stacklevel=2)
        changed = {}
    try:
        save_file(changed, folder / WEIGHTS)
    except SafetensorError as error:  # it has no type for a full disk
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder / WEIGHTS)) from error
