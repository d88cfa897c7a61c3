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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persbench import pictures, registry
from persbench.contracts import Adversary, Budget, Evidence, Method, Metric, Personalizer, PictureSet, Release, Row, Subject, Tamper, Words
from persbench.errors import PersbenchError, SkippedCell
from persbench.progress import reporter
from persbench.provenance import cost, environment, source_digest
from persbench.tracks.base import Track, TrackSubject

from .checks import check_model, check_pictures, check_rows, lent, planning
from .spec import Attack, Cell, Part, seed_of
from .store import FATAL, Artefact, Store, StoreError, digest, file_digest

if TYPE_CHECKING:
    from persbench.diffusion import DiffusionModel

# Raise a stage's number when its meaning changes: old artefacts are then left alone and made again.
FORMATS = {"protect": 1, "counter": 1, "tamper": 1, "personalize": 1, "generate": 1, "score": 1, "record": 1}
WEIGHTS, ROWS = "weights.safetensors", "rows.json"
MODELS_KEPT = 3
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


class StageError(PersbenchError):
    """A stage failed; the message names it and what was raised."""


@dataclass
class Node:
    """A stage to be run: what its key is made of, what it needs, and how it is built."""

    stage: str
    title: str
    parts: dict[str, Any]
    build: Callable[[Path], dict[str, Any] | None] = field(repr=False)
    inputs: tuple[Node, ...] = ()

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the key is a hash of."""
        return {"stage": self.stage, "format": FORMATS[self.stage], **self.parts}

    @cached_property
    def key(self) -> str:
        """The key of the artefact."""
        return digest(self.content)

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
            with cost() as spent:
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
                finally:
                    gc.collect()
            return {"cost": spent, "provenance": environment(), **notes}

        return store.get(self.stage, self.content, build, kinds)


@dataclass(frozen=True)
class Ref:
    """Photos or a model as a stage takes them: a name for the key, and where they come from."""

    id: str
    node: Node | None  # None: the published photos, or the base model


class Pipeline:
    """Plans and runs cells of one track and base model on one store."""

    def __init__(self, track_name: str, base: str, store: Store, precision: str = "fp32", device: str = "cpu") -> None:
        self.track: Track = registry.load("tracks", track_name)()
        self.track_name, self.store, self.precision, self.device = track_name, store, precision, device
        self.base_folder = Path(base) if base else self.track.base
        self._models: OrderedDict[str, DiffusionModel] = OrderedDict()
        self._digests: dict[Path, str] = {}

    # --- what keys are made of

    @cached_property
    def base_digest(self) -> str:
        """Digest of the base model's folder. Raises PersbenchError when it is no folder."""
        from persbench.diffusion.model import folder_digest

        if not self.base_folder.is_dir():
            raise PersbenchError(f"base model {self.base_folder} is not a folder; give a diffusers pipeline folder with --base")
        return folder_digest(self.base_folder)[:40]

    def _photos_digest(self, paths: Sequence[Path]) -> str:
        for path in paths:
            if path not in self._digests:
                try:
                    self._digests[path] = file_digest(path)
                except OSError as error:
                    raise PersbenchError(f"photo {path} cannot be read: {error.strerror}") from None
        return digest([self._digests[path] for path in paths])

    def _plugin(self, kind: str, name: str, cell: Cell, written: Mapping[str, str] | None = None) -> Any:
        options = {**self.track.protocol.options.get(name, {}), **cell.options_of(name), **(written or {})}
        plugin = registry.configure(name, registry.load(kind, name), options)
        reason = plugin.missing(self.base_folder)
        if reason:
            raise SkippedCell(f"{name} is not available: {reason}")
        return plugin

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

    def forget_models(self) -> None:
        """Load models again when they are next needed."""
        self.__dict__.pop("base", None)
        self._models.clear()

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
        published, base = self.published(subject), Ref(f"base:{self.base_digest}", None)
        method: Method = self._plugin("methods", cell.method, cell)
        if not method.changes:
            return published, base, None
        group = [self.track.subject(name) for name in cell.group or (subject.name,)]
        levels = cell.budget if cell.budget is not None else getattr(method.config, "budget_levels", None)
        budget = Budget(levels if levels is not None else self.track.protocol.budget_levels)
        parts = {
            "method": self._identity(cell.method, method),
            "subjects": [{"name": s.name, "photos": self.published(s).id, "words": asdict(self.track.words(s))} for s in group],
            "language": asdict(self.track.language),
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
            with lent(self, cell.method, base):
                release = method.protect(given, self.base, budget, rng)
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
        node = Node("protect", f"protect {names} with {cell.method}", parts, build)
        return (
            Ref(f"protect:{node.key}", node) if "photos" in method.changes else published,
            Ref(f"protect:{node.key}", node) if "model" in method.changes else base,
            node,
        )

    def published(self, subject: TrackSubject) -> Ref:
        """The photos of a subject before any protection."""
        return Ref(f"published:{self._photos_digest(subject.published)}", None)

    def class_pictures(self, cell: Cell, noun: str) -> Node:
        """Pictures of a class by the public model, once for a base model."""
        words = Words("", noun, self.track.protocol.template)
        prompts = (words.class_prompt,) * self.track.protocol.class_pictures
        base = Ref(f"base:{self.base_digest}", None)
        return self.generate(replace(cell, seed=0), f"generate class pictures {noun}", base, prompts, f"class:{noun}")

    def adversary(self, cell: Cell, subject: TrackSubject | None) -> Adversary:
        """What the adversary has besides the release; nothing of a subject for what all subjects share."""

        def drawn(noun: str) -> torch.Tensor:
            return pictures.read(sorted(self.class_pictures(cell, noun).run(self.store, PICTURE_FILES).folder.glob("*.png")))

        clean = pictures.read(subject.spares, self.size) if subject else torch.empty(0, 3, self.size, self.size)
        return Adversary(self.base, clean, self.track.language, drawn)

    def _means(self, cell: Cell, plugin: Tamper | Personalizer, nouns: Sequence[str]) -> tuple[Node, ...]:
        """The class pictures that a part of an attack needs, so that they are there before it."""
        return tuple(self.class_pictures(cell, noun) for noun in nouns) if plugin.uses_class_pictures else ()

    def counter(self, cell: Cell, part: Part, photos: Ref, subject: TrackSubject) -> Ref:
        """The photos after a countermeasure."""
        plugin = self._plugin("countermeasures", part.name, cell, dict(part.options))
        parts = {
            "countermeasure": self._identity(part.name, plugin),
            "photos": photos.id,
            "clean_photos": self._photos_digest(subject.spares),
            "subject": subject.name,
            "base": self.base_digest,
            "seed": cell.seed,
            **self._runtime(),
        }

        def build(folder: Path) -> None:
            given = self.photos(photos, subject)
            rng = torch.Generator().manual_seed(seed_of("counter", part, subject.name, cell.seed))
            with lent(self, part.name, Ref(f"base:{self.base_digest}", None)):
                result = plugin.apply(given, self.adversary(cell, subject), rng)
            check_pictures(part.name, result, given)
            pictures.save(result, folder, subject.name)

        needs = (photos.node,) if photos.node else ()
        node = Node("counter", f"{part} on photos of {subject.name}", parts, build, needs)
        return Ref(f"counter:{node.key}", node)

    def tamper(self, cell: Cell, part: Part, model: Ref) -> Ref:
        """The model after the adversary tampered with it; the same for all subjects."""
        plugin: Tamper = self._plugin("tampers", part.name, cell, dict(part.options))
        if not plugin.changes_model:
            return model
        means = self._means(cell, plugin, self.track.language.class_nouns)
        parts = {
            "tamper": self._identity(part.name, plugin),
            "model": model.id,
            "class_pictures": [node.key for node in means],
            "base": self.base_digest,
            "seed": cell.seed,
            **self._runtime(),
        }

        def build(folder: Path) -> None:
            rng = torch.Generator().manual_seed(seed_of("tamper", part, cell.seed))
            start = self.model(model)
            with lent(self, part.name, model, Ref(f"base:{self.base_digest}", None)):
                result = plugin.tamper(start, self.adversary(cell, None), rng)
            save_weights(result, self.base, folder, part.name)

        needs = ((model.node,) if model.node else ()) + means
        node = Node("tamper", f"{part} on the released model", parts, build, needs)
        return Ref(f"tamper:{node.key}", node)

    def personalize(self, cell: Cell, attack: Attack, photos: Ref, model: Ref, subject: TrackSubject) -> tuple[Ref, Words]:
        """The model that has learned the photos, and the words that the adversary used."""
        words, language = self.track.words(subject), self.track.language
        if attack.prompt_shift:
            shift = self._plugin("prompt_shifts", attack.prompt_shift.name, cell, dict(attack.prompt_shift.options))
            words = shift.shift(words, language)
        personalizer: Personalizer = self._plugin("personalizers", attack.personalizer.name, cell, dict(attack.personalizer.options))
        if not personalizer.trains:
            return model, replace(words, identifier="")
        for part in attack.tampers:
            tamper: Tamper = self._plugin("tampers", part.name, cell, dict(part.options))
            personalizer = type(personalizer)(tamper.train(personalizer.config))
        words = personalizer.words(words, language)
        means = self._means(cell, personalizer, (words.class_noun,))
        parts = {
            "personalizer": self._identity(attack.personalizer.name, personalizer),
            "words": asdict(words),
            "photos": photos.id,
            "model": model.id,
            "class_pictures": [node.key for node in means],
            "base": self.base_digest,
            "seed": cell.seed,
            **self._runtime(),
        }

        def build(folder: Path) -> dict[str, Any]:
            start = self.model(model)
            ids = start.identifier_tokens(words.identifier, words.instance_prompt)
            # The same noise and order for every release, so that a method is compared with its own control.
            rng = torch.Generator().manual_seed(seed_of("personalize", attack.personalizer, subject.name, cell.seed))
            with lent(self, attack.personalizer.name, model, Ref(f"base:{self.base_digest}", None)):
                result = personalizer.personalize(self.photos(photos, subject), words, start, self.adversary(cell, subject), rng)
            save_weights(result, self.base, folder, attack.personalizer.name)
            return {"identifier_tokens": ids}

        needs = tuple(ref.node for ref in (photos, model) if ref.node) + means
        node = Node("personalize", f"{attack.personalizer} on {subject.name}", parts, build, needs)
        return Ref(f"personalize:{node.key}", node), words

    def generate(self, cell: Cell, title: str, model: Ref, prompts: Sequence[str], noise: str) -> Node:
        """Pictures of prompts; sets with the same `noise` name start from the same noise."""
        from persbench.diffusion import DiffusionModel

        protocol = self.track.protocol
        parts = {
            "model": model.id,
            "prompts": list(prompts),
            "inference_steps": protocol.inference_steps,
            "guidance": protocol.guidance,
            "noise": noise,
            "seed": cell.seed,
            "source": source_digest(DiffusionModel),
            **self._runtime(),
        }

        def build(folder: Path) -> None:
            rng = torch.Generator().manual_seed(seed_of("generate", noise, cell.seed))
            sampled = self.model(model).sample(prompts, rng, inference_steps=protocol.inference_steps, guidance=protocol.guidance)
            if not torch.isfinite(sampled).all():
                raise PersbenchError("the model generates pictures that are not finite")
            pictures.save(sampled, folder, "picture")

        return Node("generate", title, parts, build, (model.node,) if model.node else ())

    def prompts(self, words: Words) -> tuple[str, ...]:
        """The evaluation prompts for the words of an adversary; without identifier those of the class."""
        protocol = self.track.protocol
        asked = [p.replace(protocol.template, words.template, 1) if p.startswith(protocol.template) else p for p in protocol.prompts]
        each = [replace(words, template=template) for template in asked for _ in range(protocol.pictures_per_prompt)]
        return tuple(w.instance_prompt if w.identifier else w.class_prompt for w in each)

    @planning
    def plan(self, cell: Cell) -> Node:
        """The record node of a cell; everything else hangs below it. Raises PersbenchError for what cannot be planned."""
        attack = Attack.parse(cell.attack)
        subject = self.track.subject(cell.subject)
        released_photos, released_model, protection = self.protect(cell, subject)
        base = Ref(f"base:{self.base_digest}", None)
        sets: dict[str, tuple[Node, tuple[str, ...], TrackSubject | None, str]] = {}
        stages: dict[str, Node] = {"protect": protection} if protection else {}

        def attacked(target: TrackSubject, photos: Ref, model: Ref, label: str) -> None:
            for part in attack.countermeasures:
                photos = self.counter(cell, part, photos, target)
                if photos.node:
                    stages[f"{label}:{part}"] = photos.node
            for part in attack.tampers:
                model = self.tamper(cell, part, model)
                if model.node and model.node.stage == "tamper":
                    stages[f"{label}:{part}"] = model.node
            tuned, words = self.personalize(cell, attack, photos, model, target)
            if tuned.node:
                stages[f"{label}:personalize"] = tuned.node
            prompts = self.prompts(words)
            node = self.generate(cell, f"generate {label} {target.name}", tuned, prompts, target.class_noun)
            sets[label] = (node, class_prompts(target), target, target.class_noun)

        def class_prompts(target: TrackSubject) -> tuple[str, ...]:
            return self.prompts(replace(self.track.words(target), identifier=""))

        def floor(target: TrackSubject, label: str) -> None:
            prompts = class_prompts(target)
            node = self.generate(cell, f"generate {label} {target.class_noun}", base, prompts, target.class_noun)
            sets[label] = (node, prompts, target, target.class_noun)

        attacked(subject, released_photos, released_model, "attacked")
        attacked(subject, self.published(subject), base, "control")
        floor(subject, "floor")
        count = self.track.protocol.bystanders if cell.bystanders is None else cell.bystanders
        for bystander in self.track.bystanders(subject, count):
            photos = self.published(bystander)
            attacked(bystander, photos, released_model, f"bystander:{bystander.name}:attacked")
            attacked(bystander, photos, base, f"bystander:{bystander.name}:control")
            floor(bystander, f"bystander:{bystander.name}:floor")
        for noun in self.track.language.class_nouns:
            words = Words("", noun, self.track.protocol.template)
            prompts = (words.class_prompt,) * self.track.protocol.prior_pictures
            for label, model in (("prior", released_model), ("prior_base", base)):
                node = self.generate(cell, f"generate {label} {noun}", model, prompts, f"prior:{noun}")
                sets[f"{label}:{noun}"] = (node, prompts, None, noun)
        return self.record(cell, subject, sets, stages, released_photos)

    def record(
        self,
        cell: Cell,
        subject: TrackSubject,
        sets: dict[str, tuple[Node, tuple[str, ...], TrackSubject | None, str]],
        stages: dict[str, Node],
        released: Ref,
    ) -> Node:
        """The record node over a cell's picture sets (node, prompts, whom they imitate, class noun) and its other stages, by label."""
        metrics: dict[str, Metric] = {name: self._plugin("metrics", name, cell) for name in registry.load_all("metrics")}
        inputs = tuple({node.key: node for node in [*(s[0] for s in sets.values()), *stages.values()]}.values())
        set_keys = {
            label: {
                "pictures": node.key,
                "references": self._photos_digest(target.references) if target else "",
                "prompts": digest(list(prompts)),
            }
            for label, (node, prompts, target, _) in sets.items()
        }

        def evidence() -> Evidence:
            found = {}
            for label, (node, prompts, target, noun) in sets.items():
                files = sorted(node.run(self.store, PICTURE_FILES).folder.glob("*.png"))
                references = pictures.read(target.references, self.size) if target else None
                found[label] = PictureSet(pictures.read(files), prompts, references, noun)
            return Evidence(found, pictures.read(subject.published, self.size), self.photos(released, subject))

        shared: list[Evidence] = []

        def scoring(name: str, metric: Metric) -> Node:
            def build(folder: Path) -> None:
                if not shared:
                    shared.append(evidence())
                rows = check_rows(name, metric, metric.measure(shared[0], self.evaluators), shared[0])
                (folder / ROWS).write_text(json.dumps([asdict(row) for row in rows]), "utf-8")

            parts = {
                "metric": self._identity(name, metric),
                "sets": set_keys,
                "published": self.published(subject).id,
                "released": released.id,
                "evaluators": self.track.evaluator_digest(),
            }
            return Node("score", f"score {name}", parts, build, inputs)

        scores = {name: scoring(name, metric) for name, metric in metrics.items()}
        attack = Attack.parse(cell.attack)

        def build(folder: Path) -> dict[str, Any]:
            rows: list[dict[str, Any]] = []
            spent = {}
            for name, node in scores.items():
                try:
                    rows += json.loads(node.run(self.store).path(ROWS).read_text("utf-8"))
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
                "cell": asdict(cell),
                "attack": asdict(attack),
                "base_digest": self.base_digest,
                "evaluators": self.track.evaluator_digest(),
                "protocol": asdict(self.track.protocol),
                "margin": self.track.protocol.margin,
                "configs": {n: p.parts for n, p in stages.items()},
                "stages": spent,
                "pictures": {label: node.key for label, (node, *_) in sets.items()},
                "identifier_tokens": tokens,
                "rows": rows,
                "provenance": environment(),
            }
            (folder / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True), "utf-8")
            self._sheet(sets, subject, released, folder / "pictures.png")
            return {"complete": all(row["value"] is not None for row in rows)}

        parts = {"cell": asdict(cell), "scores": {name: node.key for name, node in scores.items()}}
        title = f"{cell.method} · {cell.attack} · {cell.subject}"
        return Node("record", title, parts, build, inputs)

    def _sheet(self, sets: Mapping[str, tuple[Node, Any, Any, Any]], subject: TrackSubject, released: Ref, path: Path) -> None:
        rows = [pictures.read(subject.published, self.size), self.photos(released, subject)]
        for label in ("control", "attacked", *(name for name in sets if name.endswith((":control", ":attacked")))):
            rows.append(pictures.read(sorted(sets[label][0].run(self.store, PICTURE_FILES).folder.glob("*.png"))))
        pictures.sheet(rows, path)


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
