"""No protection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel


class NoProtection(Method):
    """The control: photos and model are released as they are."""

    card: ClassVar[Card] = Card("No protection", controls="nothing", knows="nothing")
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset()

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        return Release()
