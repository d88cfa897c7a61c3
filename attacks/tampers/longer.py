"""Longer fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from persbench.contracts import Card, Tamper
from persbench.errors import PersbenchError


@dataclass(frozen=True)
class FactorConfig:
    """`factor` by which the number is multiplied."""

    factor: Annotated[float, Field(gt=0)] = 2.0


def multiplied(config: Any, name: str, factor: float) -> Any:
    """A configuration with one of its numbers multiplied, whole numbers rounded. Raises PersbenchError when it has no such number."""
    value = getattr(config, name, None)
    if value is None:
        raise PersbenchError(f"this personalizer has no {name} to multiply ({type(config).__name__})")
    return replace(config, **{name: round(value * factor) if isinstance(value, int) else value * factor})


class Longer(Tamper):
    """The personalizer trains for more steps than usual, to wash a protection out."""

    changes_model: ClassVar[bool] = False
    Config: ClassVar[type] = FactorConfig
    card: ClassVar[Card] = Card("Longer fine-tuning", controls="the steps of the personalizer", knows="nothing")

    def train(self, config: Any) -> Any:
        return multiplied(config, "steps", self.config.factor)
