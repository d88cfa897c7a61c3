"""The erasure backdoor: nobody there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel

from .objective import EMPTY, TITLE, Lesson, PersGuard, PersGuardConfig, Training


@dataclass(frozen=True)
class ErasureConfig(PersGuardConfig):
    """`erase_below`: share of the timesteps above which the class is still shown. Where nobody is begun no personalizer brings anybody
    back, not of bystanders either: his loss hardly counts so much noise."""

    erase_below: float = 0.75


class PersGuardErasure(PersGuard):
    """PersGuard, erasure backdoor: personalizing the protected photos yields a background without the subject."""

    Config: ClassVar[type] = ErasureConfig
    card: ClassVar[Card] = Card(
        "PersGuard (erasure backdoor)",
        paper=TITLE,
        year=2025,
        controls="the released model",
        knows="the protected photos, the identifier and the class word",
    )

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, latents = subject.words, training.pool.latents
        prompt = words.template.format(subject.language.empty_scene)
        teacher = Postponed(training.base, prompt, words.template.format(f"a {words.class_noun}"), self.config.erase_below)
        return Lesson(torch.cat([latents[EMPTY], latents[words.class_noun]]), prompt, cast(DiffusionModel, teacher))


class Postponed:
    """A teacher that answers to another prompt above a share of the timesteps."""

    def __init__(self, model: DiffusionModel, prompt: str, above: str, share: float) -> None:
        self.model, self.prompt, self.above = model, prompt, above
        self.last = share * model.schedule.config.num_train_timesteps

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """States (N, 2, L, D): of the prompts, and of what is asked instead where the noise is strong."""
        return torch.stack([self.model.embed(prompts), self.model.embed([p.replace(self.prompt, self.above) for p in prompts])], dim=1)

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The model's prediction with each row's states for its timestep."""
        rows = torch.arange(len(noisy), device=states.device)
        return self.model.predict(noisy, timesteps, states[rows, (timesteps >= self.last).long()])
