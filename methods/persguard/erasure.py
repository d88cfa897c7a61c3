"""The erasure backdoor: nobody there."""

from __future__ import annotations

from typing import ClassVar

import torch

from persbench.contracts import Card, Subject

from .objective import EMPTY, TITLE, Lesson, PersGuard, Training


class PersGuardErasure(PersGuard):
    """PersGuard, erasure backdoor: personalizing the protected photos yields a background without the subject."""

    card: ClassVar[Card] = Card(
        "PersGuard (erasure backdoor)",
        paper=TITLE,
        year=2025,
        controls="the released model",
        knows="the protected photos, the identifier and the class word",
    )

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, latents = subject.words, training.pool.latents
        return Lesson(torch.cat([latents[EMPTY], latents[words.class_noun]]), words.template.format(subject.language.empty_scene))
