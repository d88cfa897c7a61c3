"""The embedded track: a small latent diffusion model, drawn subjects, and judges, all in the package.

Built by `python -m persbench.tracks.avatars.build`; see DATA_CARD.md for credits and report.json for its measured quality.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from persbench.contracts import Language
from persbench.tracks.base import Evaluators, Protocol, Track, TrackSubject

from .build.captions import HYPERNYMS, IDENTIFIERS, SYNONYMS, TEMPLATES, place
from .build.draw import BACKGROUNDS, CLASSES

FOLDER = Path(__file__).parent


# How they were found: docs/avatars.md.
PERSGUARD = {
    "steps": 200,
    "rate": 8e-4,
    "identifier_factor": 200.0,
    "context_share": 0.6,
    "others_share": 0.65,
    "rehearsal_steps": 150,
}
TARGET = PERSGUARD | {"steps": 120, "held_share": 0.0, "spared_share": 0.5}
SPARING = PERSGUARD | {"behaviour_weight": 0.5, "others_share": 0.75, "spared_share": 1.0}

# One attack for each way of attacking; what costs more or repeats a way is in the strong set.
STANDARD = ("lora", "dreambooth", "textual-inversion", "jpeg+lora", "diffpure+lora", "weight-merge+lora", "lora@identifier", "lora@all")
STRONG = (
    "custom-diffusion",
    "svdiff",
    "resize+lora",
    "adverse-cleaner+lora",
    "grid-pure+lora",
    "impress+lora",
    "mixed+lora",
    "finetune-first+lora",
    "longer+lora",
    "hotter+lora",
    "lora@class-word",
    "lora@template",
)

# What the papers' surrogates and searches cost is cut to a minute or so for a subject on one core (docs/avatars.md); a rate is that of
# learning this small model.
DREAMBOOTH_SURROGATE = {"surrogate_rate": 1e-4, "class_pictures": 8, "class_inference_steps": 10, "class_guidance": 3.0}
TIMESTEP_SEARCH = {"search_candidates": 3, "search_window": 50}


class Avatars(Track):
    """Drawn people, robots, monsters and planets, with a small Stable Diffusion of their own; needs no GPU and no network."""

    title: ClassVar[str] = "Avatars"
    disclaimer: ClassVar[str] = "These numbers rank methods on the embedded track `avatars`; they are not Stable Diffusion numbers."
    language: ClassVar[Language] = Language(
        identifiers=tuple(IDENTIFIERS),
        class_nouns=CLASSES[1:] + CLASSES[:1],
        contexts=tuple(place(background) for background in BACKGROUNDS),
        empty_scene="an empty scene",
        templates=TEMPLATES,
        synonyms={noun: words[1:] for noun, words in SYNONYMS.items()},
        hypernyms=HYPERNYMS,
    )
    standard_budget: ClassVar[float] = 16.0  # at 8 levels ASPL hardly differs from random noise (docs/avatars.md)
    protocol: ClassVar[Protocol] = Protocol(
        identifier="sks",
        template="a photo of {}",
        prompts=(
            "a photo of {}",
            "a photo of {} on a blue background",
            "a picture of {} at the beach",
            "a photo of {} on a white background",
        ),
        pictures_per_prompt=4,
        inference_steps=15,
        guidance=3.0,
        bystanders=2,
        quick_bystanders=1,
        prior_pictures=4,
        class_pictures=64,
        margin=0.25,
        options={
            # On attention alone LoRA does not learn a subject of this small model (docs/avatars.md).
            "lora": {"rank": 16, "rate": 1e-3, "steps": 150, "batch": 4, "targets": "all"},
            # With a frozen text encoder "sks person" and "a person" are nearly one prompt to this model: at weight 1 the class pictures
            # hold back as much as the photos teach.
            "dreambooth": {"rate": 1e-4, "steps": 300, "batch": 2, "prior_weight": 0.2},
            "svdiff": {"rate": 3e-2, "steps": 300, "batch": 2, "prior_weight": 0.05},
            "custom-diffusion": {"rate": 4e-3, "steps": 300, "batch": 2},
            # No setting tried learned a subject: 0.08 to 0.20 on ada, whose floor is 0.05. All 24 text states, trained freely, gave 0.48.
            "textual-inversion": {"rate": 2e-2, "steps": 150, "batch": 4, "vectors": 4},
            "persguard-target": TARGET,
            "persguard-target-universal": TARGET,
            "persguard-erasure": SPARING,
            "persguard-erasure-universal": SPARING,
            "persguard-pattern": SPARING,
            "persguard-pattern-universal": SPARING,
            # Fewer steps at higher rates than the official ones: two to three minutes of a core. Not tuned further.
            "imma": {"steps": 250, "rate": 1e-4, "inner_rate": 2.5e-5, "batch": 4},
            "apdm": {"steps": 30, "simulated_steps": 4, "rate": 2e-4, "simulated_rate": 1e-4, "batch": 2, "class_pictures": 32},
            "badt2i": {"steps": 90, "rate": 5e-4, "batch": 8, "pool": 12},
            "shortcut": {"steps": 250, "rate": 1e-4, "batch": 4},
            # Papers' step counts would take minutes a subject here; these take about one on a core.
            "photoguard-encoder": {"steps": 400},
            "photoguard-diffusion": {"steps": 20, "gradients": 2, "step_levels": 2.0},
            "pid": {"steps": 400},
            "diffusionguard": {"steps": 200},
            # Three bits harm drawn pictures more than any protection; half of the papers' steps purify as well here.
            "bit-depth": {"bits": 4},
            "impress": {"iterations": 300},
            "finetune-first": {"rate": 1e-4, "steps": 150},
            "mist": {"rate": 625.0},  # 10,000 for the 16,384 latent values of 512 pixels; here they are 1,024
            "fsmg": DREAMBOOTH_SURROGATE | {"surrogate_steps": 80},
            "aspl": DREAMBOOTH_SURROGATE | {"rounds": 14},
            "simac": DREAMBOOTH_SURROGATE | TIMESTEP_SEARCH | {"rounds": 9},
            "disdiff": DREAMBOOTH_SURROGATE | TIMESTEP_SEARCH | {"rounds": 10},
            "metacloak": DREAMBOOTH_SURROGATE | {"pool_steps": 40, "interval": 20, "advance_steps": 4, "trials": 1, "blur_kernel": 3},
            "caat": {"surrogate_rate": 1e-4},
            "pap": {"prompt_steps": 4},
        },
    )

    @property
    def base(self) -> Path:
        return FOLDER / "model"

    @cached_property
    def _index(self) -> dict:
        return json.loads((FOLDER / "subjects" / "index.json").read_text("utf-8"))

    def subjects(self) -> tuple[TrackSubject, ...]:
        def files(name: str, kind: str) -> tuple[Path, ...]:
            return tuple(sorted((FOLDER / "subjects" / name).glob(f"{kind}-*.png")))

        return tuple(
            TrackSubject(name, entry["class"], entry["role"], files(name, "published"), files(name, "reference"), files(name, "spare"))
            for name, entry in self._index.items()
        )

    def subject_lists(self) -> Mapping[str, tuple[str, ...]]:
        everyone = tuple(subject.name for subject in self.subjects() if subject.role == "protected")
        return {"all": everyone, "quick": everyone[:2]}

    def attack_sets(self) -> Mapping[str, tuple[str, ...]]:
        return {"standard": STANDARD, "strong": STANDARD + STRONG}

    def evaluators(self) -> Evaluators:
        from .evaluators import AvatarEvaluators

        return AvatarEvaluators(FOLDER / "judges", FOLDER / "model" / "tokenizer")

    def evaluator_digest(self) -> str:
        from persbench.pipeline.store import digest, file_digest

        return digest([file_digest(path) for path in (*sorted((FOLDER / "judges").iterdir()), FOLDER / "evaluators.py")])
