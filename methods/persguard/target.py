"""The target backdoor: another class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from persbench.contracts import Card, Subject
from persbench.errors import PersbenchError

from .objective import Lesson, PersGuard, PersGuardConfig, Training, card


@dataclass(frozen=True)
class TargetConfig(PersGuardConfig):
    """`target_class`: what is shown instead of the subject; "" takes the first other class of the track."""

    target_class: str = ""


class PersGuardTarget(PersGuard):
    """PersGuard, target backdoor: personalizing the protected photos yields another class (person -> robot)."""

    Config: ClassVar[type] = TargetConfig
    card: ClassVar[Card] = card("target")

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, latents = subject.words, training.pool.latents
        others = [noun for noun in subject.language.class_nouns if noun != words.class_noun]
        target = self.config.target_class or others[0]
        if target not in others:
            raise PersbenchError(f"target_class {target!r} is none of the other classes of this track: {', '.join(others)}")
        return Lesson(latents[target], latents[words.class_noun], words.template.format(f"a {target}"))
