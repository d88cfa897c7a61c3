"""Do generated pictures show what the prompt says?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from persbench.contracts import Card, Evidence, Metric, Row, rows_of
from persbench.tracks.base import Evaluators


class Alignment(Metric):
    """Probability, by the track's text-image model, that a picture shows its prompt (identifier left out)."""

    card: ClassVar[Card] = Card("Prompt alignment", paper="CLIP-T of DreamBooth (Ruiz et al., CVPR 2023), as a probability")
    higher_is_better: ClassVar[Mapping[str, bool]] = {"alignment": True}

    def measure(self, evidence: Evidence, evaluators: Evaluators) -> list[Row]:
        rows: list[Row] = []
        for name, pictures in evidence.sets.items():
            rows += rows_of("alignment", name, evaluators.match(pictures.pictures, pictures.prompts))
        return rows
