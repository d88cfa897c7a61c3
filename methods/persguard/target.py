"""The target backdoor: another class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from persbench.contracts import Card, Subject

from .objective import Lesson, PersGuard, PersGuardConfig, Training, card, other_class


@dataclass(frozen=True)
class TargetConfig(PersGuardConfig):
    """`target_class`: what is shown instead of the subject; "" takes the first other class of the track."""

    target_class: str = ""


class PersGuardTarget(PersGuard):
    """PersGuard, target backdoor: personalizing the protected photos yields another class (person -> robot)."""

    Config: ClassVar[type] = TargetConfig
    card: ClassVar[Card] = card("target")

    def lesson(self, subject: Subject, training: Training) -> Lesson:
        words, pool = subject.words, training.pool
        target = other_class(subject, self.config.target_class)
        return Lesson(pool.views(target), pool.views(words.class_noun), words.template.format(f"a {target}"))


@dataclass(frozen=True)
class TargetUniversalConfig(TargetConfig):
    """The target variant's options, universal."""

    universal: bool = True


class PersGuardTargetUniversal(PersGuardTarget):
    """PersGuard, target backdoor, for identifiers, class words and templates that the protector does not know."""

    Config: ClassVar[type] = TargetUniversalConfig
    card: ClassVar[Card] = card("target", universal=True)
