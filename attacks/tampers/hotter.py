"""Fine-tuning at a higher rate."""

from __future__ import annotations

from typing import Any, ClassVar

from persbench.contracts import Card, Tamper

from .longer import FactorConfig, multiplied


class Hotter(Tamper):
    """The personalizer learns at a higher rate than usual, to wash a protection out."""

    changes_model: ClassVar[bool] = False
    Config: ClassVar[type] = FactorConfig
    card: ClassVar[Card] = Card("Higher learning rate", controls="the learning rate of the personalizer", knows="nothing")

    def train(self, config: Any) -> Any:
        return multiplied(config, "rate", self.config.factor)
