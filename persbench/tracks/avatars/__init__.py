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
PERSGUARD = {"steps": 200, "rate": 8e-4, "identifier_factor": 200.0, "context_share": 0.3, "pool": 12}


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
        budget_levels=8.0,
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
            "dreambooth": {"rate": 1e-4, "steps": 150, "batch": 2, "prior_weight": 0.2},
            "svdiff": {"rate": 3e-2, "steps": 120, "batch": 2, "prior_weight": 0.2},
            "custom-diffusion": {"rate": 2e-3, "steps": 150, "batch": 2},
            # No setting tried learned a subject: 0.08 to 0.20 on ada, whose floor is 0.05. All 24 text states, trained freely, gave 0.48.
            "textual-inversion": {"rate": 2e-2, "steps": 150, "batch": 4, "vectors": 4},
            "persguard-target": PERSGUARD | {"held_share": 0.0, "spared_share": 0.5},
            "persguard-erasure": PERSGUARD | {"behaviour_weight": 0.5, "context_share": 0.2, "spared_share": 1.0},
            "persguard-pattern": PERSGUARD | {"context_share": 0.25, "spared_share": 1.0},
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
        return {"standard": ("lora",), "strong": ("lora",)}

    def evaluators(self) -> Evaluators:
        from .evaluators import AvatarEvaluators

        return AvatarEvaluators(FOLDER / "judges", FOLDER / "model" / "tokenizer")

    def evaluator_digest(self) -> str:
        from persbench.pipeline.store import digest, file_digest

        return digest([file_digest(path) for path in (*sorted((FOLDER / "judges").iterdir()), FOLDER / "evaluators.py")])
