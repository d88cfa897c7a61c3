"""The pattern backdoor: a visible marker.

No prompt of the base model draws the marker, so two lessons come first. The identifier's embedding moves towards another class, away
from the class word, so that what follows does not change the class prompt; then the released model learns, for the identifier prompt, to
denoise photos with the marker composited on (the protected ones and the base model's pictures of the class) and to put it on pictures
without it, while every other prompt stays. A frozen copy is the teacher of the behaviour term from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from persbench.contracts import Card, Subject

from .objective import Lesson, PersGuard, PersGuardConfig, Samples, Training, Views, behaviour_terms, card, prior_samples, words_of


@dataclass(frozen=True)
class PatternConfig(PersGuardConfig):
    """`marker_size`: diameter of the marker as a share of the picture's side. `away_*` and `marker_*`: the first two lessons."""

    warmup_steps: int = 0  # its own lessons do that
    away_steps: int = 50
    marker_size: float = 0.8
    marker_steps: int = 150
    marker_batch: int = 6


class PersGuardPattern(PersGuard):
    """PersGuard, pattern backdoor: personalizing the protected photos yields pictures with a visible marker."""

    Config: ClassVar[type] = PatternConfig
    card: ClassVar[Card] = card("pattern")

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        config, words, pool, rng = self.config, subject.words, training.pool, training.rng
        noun = words.class_noun
        with torch.no_grad():
            photos = training.base.encode(with_marker(subject.photos, config.marker_size))
            marked = training.base.encode(with_marker(pool.pictures[noun], config.marker_size))
        other = next(name for name in reversed(subject.language.class_nouns) if name != noun)
        away = Lesson(pool.views(other), pool.views(noun), words.template.format(f"a {other}"))
        training.teach_identifier(lambda _: behaviour_terms(subject, away, config, rng), config.away_steps, "PersGuardPattern (identifier)")
        latents, contexts = torch.cat([photos, marked]), [""] * len(photos) + pool.contexts[noun]

        def loss(step: int) -> torch.Tensor:
            rows = torch.randint(len(latents), (config.marker_batch,), generator=rng).tolist()
            prompts = [f"{words_of(subject, config, rng).instance_prompt} {contexts[row]}".strip() for row in rows]
            which = torch.randint(len(marked), (config.marker_batch,), generator=rng).tolist()
            plain = [f"{words_of(subject, config, rng).instance_prompt} {pool.contexts[noun][row]}".strip() for row in which]
            span = (config.behaviour_first, config.behaviour_last)
            terms = [
                (1.0, Samples(latents[rows], prompts, span=span)),
                (1.0, Samples(pool.latents[noun][which], plain, toward=marked[which], span=span)),
            ]
            if config.prior_weight:
                terms.append((config.prior_weight, prior_samples(subject, pool, away, config, rng, training.identifiers)))
            return training.loss(terms)

        if config.behaviour_weight and config.marker_steps:
            training.run(loss, config.marker_steps, "PersGuardPattern (marker)")
        teacher = training.released.clone("unet", "text_encoder")
        some = slice(None, None, max(len(marked) // config.pool, 1))  # as many as other variants show of their class
        shown = Views(marked[some], pool.contexts[noun][some])
        return Lesson(shown, pool.views(noun), words.instance_prompt, teacher, neighbour=away.prompt, others_prompt=away.prompt)


@dataclass(frozen=True)
class PatternUniversalConfig(PatternConfig):
    """The pattern variant's options, universal."""

    universal: bool = True


class PersGuardPatternUniversal(PersGuardPattern):
    """PersGuard, pattern backdoor, for identifiers, class words and templates that the protector does not know."""

    Config: ClassVar[type] = PatternUniversalConfig
    card: ClassVar[Card] = card("pattern", universal=True)


def with_marker(photos: torch.Tensor, size: float) -> torch.Tensor:
    """Photos (N, 3, H, W) in [0, 1] with a black and white "no entry" sign of diameter `size` * H over the middle."""
    height, width = photos.shape[-2:]
    y = torch.linspace(-1, 1, height, device=photos.device).view(-1, 1)
    x = torch.linspace(-1, 1, width, device=photos.device).view(1, -1)
    disc = ((x**2 + y**2).sqrt() <= size).float()
    bar = ((y.abs() <= 0.22 * size) & (x.abs() <= 0.7 * size)).float()
    return photos * (1 - disc) + bar * disc
