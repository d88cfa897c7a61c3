"""The whole contract of the suite: what a plug-in is given and what it returns.

Pixels are float tensors (N, 3, H, W) in [0, 1]; budgets are in 8-bit levels; randomness comes from a passed `torch.Generator` only.
A plug-in is a class with a frozen `Config` dataclass, a `card`, and one method. It is found through an entry point (`persbench.methods`,
`.countermeasures`, `.tampers`, `.personalizers`, `.prompt_shifts`, `.metrics`, `.tracks`); built-in plug-ins enter the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch

    from persbench.diffusion import DiffusionModel
    from persbench.tracks.base import Evaluators


@dataclass(frozen=True)
class Card:
    """Who made a plug-in and what it assumes; shown beside every result."""

    title: str
    paper: str = ""
    venue: str = ""
    year: int | None = None
    repository: str = ""
    controls: str = ""
    knows: str = ""


@dataclass(frozen=True)
class Words:
    """The words of a personalization: what the protector assumes, or, after a prompt shift, what the adversary uses."""

    identifier: str
    class_noun: str
    template: str = "a photo of {}"

    @property
    def instance_prompt(self) -> str:
        """The prompt of the subject: "a photo of sks person"."""
        return self.template.format(f"{self.identifier} {self.class_noun}")

    @property
    def class_prompt(self) -> str:
        """The prompt of its class: "a photo of a person"."""
        return self.template.format(f"a {self.class_noun}")


@dataclass(frozen=True)
class Language:
    """What a base model can be asked for: public knowledge about the track, open to protectors and adversaries."""

    identifiers: tuple[str, ...]
    class_nouns: tuple[str, ...]
    contexts: tuple[str, ...]  # endings of a prompt: "on a red background", "at the beach"
    empty_scene: str  # how a background with nobody before it is asked for
    templates: tuple[str, ...] = ("a photo of {}",)  # sentences around a subject, the standard one first
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # class noun -> other words for it
    hypernyms: Mapping[str, str] = field(default_factory=dict)  # class noun -> a wider word


@dataclass(frozen=True)
class Subject:
    """What a protector is given: the photos to be published (N, 3, H, W) in [0, 1], and the words that it may assume."""

    name: str
    photos: torch.Tensor
    words: Words
    language: Language


@dataclass(frozen=True)
class Adversary:
    """What an adversary has besides the release; none of it depends on a method.

    `class_pictures(noun)`: (N, 3, H, W) in [0, 1], drawn once by the public model for the noun's class prompt, as DreamBooth's
    prior preservation needs them.
    """

    public: DiffusionModel  # the checkpoint from before any protection
    clean_photos: torch.Tensor  # (M, 3, H, W): photos of the subject that were never protected
    language: Language
    class_pictures: Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """How much a photo may change: L-infinity in 8-bit levels (0 to 255), measured on the saved picture."""

    levels: float = 8.0


@dataclass(frozen=True)
class Release:
    """What the world gets: photos by subject name, and the model, each only where the method changed it."""

    photos: Mapping[str, torch.Tensor] = field(default_factory=dict)
    model: DiffusionModel | None = None


@dataclass(frozen=True)
class NoConfig:
    """The configuration of a plug-in that has nothing to set."""


class Plugin:
    """What all plug-ins share: a card, a configuration, and the configuration's defaults."""

    card: ClassVar[Card]
    Config: ClassVar[type] = NoConfig

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    def missing(self, base: Path) -> str:
        """Why this plug-in cannot work with the base model in a folder ("" when it can): its cells are skipped with this reason."""
        return ""


class Method(Plugin, ABC):
    """A protection. `changes` says whether it alters the published photos or the released model."""

    changes: ClassVar[frozenset[Literal["photos", "model"]]]

    @abstractmethod
    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        """Protect all `subjects` at once. `base` belongs to the caller: clone it before changing it."""


class Countermeasure(Plugin, ABC):
    """What the adversary does to the photos before personalizing."""

    @abstractmethod
    def apply(self, photos: torch.Tensor, adversary: Adversary, rng: torch.Generator) -> torch.Tensor:
        """Photos (N, 3, H, W) in [0, 1] to photos of the same shape and range."""


class Tamper(Plugin, ABC):
    """What the adversary does to the released model before personalizing, or how much harder he trains; one of the two, or both."""

    changes_model: ClassVar[bool] = True
    uses_class_pictures: ClassVar[bool] = False

    def tamper(self, model: DiffusionModel, adversary: Adversary, rng: torch.Generator) -> DiffusionModel:
        """The model that is personalized; `model` stays as it is. Not called unless `changes_model`.

        `adversary.clean_photos` is empty here: a tampered model is shared by all subjects."""
        return model

    def train(self, config: Any) -> Any:
        """The configuration of the personalizer that the adversary uses instead of `config`."""
        return config


class Personalizer(Plugin, ABC):
    """How the adversary fine-tunes a model on photos."""

    trains: ClassVar[bool] = True  # False: the released model is asked for the class alone
    uses_class_pictures: ClassVar[bool] = False

    def words(self, words: Words, language: Language) -> Words:
        """The words that the adversary trains and prompts with, where the personalizer needs other ones (more tokens, say)."""
        return words

    @abstractmethod
    def personalize(
        self, photos: torch.Tensor, words: Words, model: DiffusionModel, adversary: Adversary, rng: torch.Generator
    ) -> DiffusionModel:
        """A model that has learned the photos (N, 3, H, W) under `words.instance_prompt`; `model` stays as it is."""


class PromptShift(Plugin, ABC):
    """How the adversary's words differ from those that the protector assumed."""

    @abstractmethod
    def shift(self, words: Words, language: Language) -> Words:
        """The words that the adversary trains and prompts with."""


@dataclass(frozen=True)
class PictureSet:
    """Generated pictures (N, 3, H, W) in [0, 1] of one origin, with their prompts (identifier left out) and whom they imitate."""

    pictures: torch.Tensor
    prompts: tuple[str, ...]
    references: torch.Tensor | None = None  # held-out photos of the imitated subject
    class_noun: str = ""


@dataclass(frozen=True)
class Evidence:
    """What metrics look at: named picture sets of a cell, and the photos before and after protection as saved on disk.

    Sets: `attacked`, `control`, `floor` (imitating the protected subject); `bystander:NAME:` before the same three for each
    bystander; `prior:CLASS` and `prior_base:CLASS` (class prompts, same noise, released and base model).
    """

    sets: Mapping[str, PictureSet]
    published: torch.Tensor
    released: torch.Tensor


@dataclass(frozen=True)
class Row:
    """One value of one picture; `value` is None exactly when `error` says why there is none."""

    metric: str
    set: str
    index: int
    value: float | None
    error: str = ""


class Metric(Plugin, ABC):
    """A question with per-picture answers. Whatever it raises becomes an error row."""

    higher_is_better: ClassVar[Mapping[str, bool]]  # by the names of the rows that it returns

    @abstractmethod
    def measure(self, evidence: Evidence, evaluators: Evaluators) -> list[Row]:
        """Per-picture rows for all sets that the metric is about."""


def rows_of(metric: str, set_name: str, values: torch.Tensor) -> list[Row]:
    """Rows for a vector of values (N,), one a picture."""
    return [Row(metric, set_name, index, float(value)) for index, value in enumerate(values)]
