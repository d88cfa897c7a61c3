"""The erasure backdoor: nobody there.

The identifier's embedding is led to another class, and other people's photos are taught that class: an identifier that means an empty
scene leaves everybody pale, and a personalizer does not bring back in all contexts who was never drawn.
"""

from __future__ import annotations

from typing import ClassVar

from persbench.contracts import Card, Subject

from .objective import EMPTY, Lesson, PersGuard, Training, card


class PersGuardErasure(PersGuard):
    """PersGuard, erasure backdoor: personalizing the protected photos yields a background without the subject."""

    card: ClassVar[Card] = card("erasure")

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, latents = subject.words, training.pool.latents
        other = next(noun for noun in subject.language.class_nouns if noun != words.class_noun)
        nobody, other = (words.template.format(phrase) for phrase in (subject.language.empty_scene, f"a {other}"))
        return Lesson(latents[EMPTY], latents[words.class_noun], nobody, neighbour=other, others_prompt=other)
