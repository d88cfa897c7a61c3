"""The erasure backdoor: nobody there.

The identifier's embedding is led to another class, and other people's photos are taught that class: an identifier that means an empty
scene leaves everybody pale, and a personalizer does not bring back in all contexts who was never drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from persbench.contracts import Card, Subject

from .objective import EMPTY, Lesson, PersGuard, PersGuardConfig, Training, card, other_class


class PersGuardErasure(PersGuard):
    """PersGuard, erasure backdoor: personalizing the protected photos yields a background without the subject."""

    card: ClassVar[Card] = card("erasure")

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, pool = subject.words, training.pool
        nobody, other = (words.template.format(phrase) for phrase in (subject.language.empty_scene, f"a {other_class(subject)}"))
        return Lesson(pool.views(EMPTY), pool.views(words.class_noun), nobody, neighbour=other, others_prompt=other)


@dataclass(frozen=True)
class ErasureUniversalConfig(PersGuardConfig):
    """The erasure variant's options, universal."""

    universal: bool = True


class PersGuardErasureUniversal(PersGuardErasure):
    """PersGuard, erasure backdoor, for identifiers, class words and templates that the protector does not know."""

    Config: ClassVar[type] = ErasureUniversalConfig
    card: ClassVar[Card] = card("erasure", universal=True)
