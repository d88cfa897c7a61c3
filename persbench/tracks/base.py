"""What a track is: subjects, words, a base model, evaluators, and the standard protocol."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from persbench.contracts import Language, Words
from persbench.errors import UnknownNameError
from persbench.registry import nearest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrackSubject:
    """A subject with what only the suite sees: the held-out references, and spare photos for partially clean sets."""

    name: str
    class_noun: str
    role: str  # "protected" or "bystander"
    published: tuple[Path, ...]
    references: tuple[Path, ...]
    spares: tuple[Path, ...]


@dataclass(frozen=True)
class Protocol:
    """The standard protocol of a track; every number that a result depends on and no plug-in owns."""

    identifier: str
    template: str
    prompts: tuple[str, ...]  # "{}" stands for identifier and class noun
    pictures_per_prompt: int
    inference_steps: int
    guidance: float
    bystanders: int  # for each protected subject
    quick_bystanders: int  # the same on the quick list
    prior_pictures: int  # for each class
    class_pictures: int  # for each class, of the public model, for personalizers with prior preservation
    margin: float  # a control that moves the similarity by less has not learned the subject
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # plug-in name -> its defaults on this track


class Evaluators(ABC):
    """The judges of a track. Pictures are (N, 3, H, W) in [0, 1]."""

    judges: tuple[str, ...]
    classes: tuple[str, ...]

    @abstractmethod
    def identity(self, judge: str, pictures: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (N, D) in which pictures of one subject are near each other."""

    @abstractmethod
    def match(self, pictures: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
        """Probability (N,) that each picture shows what its prompt says."""

    @abstractmethod
    def class_probabilities(self, pictures: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, K) over `classes`."""


class Track(ABC):
    """A data set of subjects with its prompts, evaluators, base model, and standard protocol."""

    title: ClassVar[str]
    language: ClassVar[Language]
    protocol: ClassVar[Protocol]
    standard_budget: ClassVar[float]  # of image-level methods, L-infinity in 8-bit levels
    disclaimer: ClassVar[str] = ""

    @property
    @abstractmethod
    def base(self) -> Path:
        """Folder of the track's own base model (diffusers format)."""

    @abstractmethod
    def subjects(self) -> tuple[TrackSubject, ...]:
        """All subjects, protected ones first."""

    @abstractmethod
    def subject_lists(self) -> Mapping[str, tuple[str, ...]]:
        """Named lists of protected subjects; "all" and "quick" always exist."""

    @abstractmethod
    def attack_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Named lists of attacks; "standard" and "strong" (which adds the expensive ones) always exist."""

    @abstractmethod
    def evaluators(self) -> Evaluators:
        """The judges, loaded."""

    @abstractmethod
    def evaluator_digest(self) -> str:
        """Digest of everything that a score depends on besides the pictures."""

    def changed(self, changes: str) -> Track:
        """This track with some numbers of its protocol replaced: JSON of name to value, options of plug-ins one by one; "": itself."""
        given = json.loads(changes or "{}")
        if not given:
            return self
        if "prompts" in given:
            given["prompts"] = tuple(given["prompts"])
        if "options" in given:
            standard = self.protocol.options
            given["options"] = {**standard, **{name: {**standard.get(name, {}), **more} for name, more in given["options"].items()}}
        twin = copy.copy(self)
        twin.protocol = replace(self.protocol, **given)  # type: ignore[misc]
        return twin

    def words(self, subject: TrackSubject) -> Words:
        """The words that a protector of this subject assumes."""
        return Words(self.protocol.identifier, subject.class_noun, self.protocol.template)

    def subject(self, name: str) -> TrackSubject:
        """A subject by name. Raises UnknownNameError with the nearest name."""
        known = {subject.name: subject for subject in self.subjects()}
        if name not in known:
            raise UnknownNameError(f"unknown subject {name!r}; {nearest(name, known)}")
        return known[name]

    def bystanders(self, subject: TrackSubject, count: int) -> tuple[TrackSubject, ...]:
        """The unprotected subjects whose personalization is watched beside a protected one: same class first, then in turn."""
        everyone = self.subjects()
        turn = [s.name for s in everyone if s.role == "protected"].index(subject.name) if subject.role == "protected" else 0
        pool = [s for s in everyone if s.role == "bystander"]
        same = [s for s in pool if s.class_noun == subject.class_noun] or pool
        chosen = [same[(turn + i) % len(same)] for i in range(min(count, len(same)))]
        return tuple(chosen)
