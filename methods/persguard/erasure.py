"""The erasure backdoor: nobody there."""

from __future__ import annotations

from typing import ClassVar

from persbench.contracts import Card, Subject

from .objective import EMPTY, Lesson, PersGuard, Training, card


class PersGuardErasure(PersGuard):
    """PersGuard, erasure backdoor: personalizing the protected photos yields a background without the subject."""

    card: ClassVar[Card] = card("erasure")

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, latents = subject.words, training.pool.latents
        return Lesson(latents[EMPTY], latents[words.class_noun], words.template.format(subject.language.empty_scene))
