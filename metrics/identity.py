"""How much of the subject do generated pictures show?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F

from persbench.contracts import Card, Evidence, Metric, Row, rows_of
from persbench.tracks.base import Evaluators


def similarity(embedded: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Cosine (N,) of unit embeddings (N, D) with the mean of the references' unit embeddings (M, D)."""
    return F.cosine_similarity(embedded, references.mean(dim=0, keepdim=True), dim=1)


class Identity(Metric):
    """Identity similarity to the held-out references, by each judge, and whether the subject's class is seen at all."""

    card: ClassVar[Card] = Card("Identity similarity", paper="ISM of Anti-DreamBooth (Van Le et al., ICCV 2023), on all pictures")
    higher_is_better: ClassVar[Mapping[str, bool]] = {"identity": False, "detected": False}

    def measure(self, evidence: Evidence, evaluators: Evaluators) -> list[Row]:
        rows: list[Row] = []
        for name, pictures in evidence.sets.items():
            if pictures.references is None:
                continue
            for judge in evaluators.judges:
                references = evaluators.identity(judge, pictures.references)
                rows += rows_of(f"identity:{judge}", name, similarity(evaluators.identity(judge, pictures.pictures), references))
            if pictures.class_noun in evaluators.classes:
                best = evaluators.class_probabilities(pictures.pictures).argmax(dim=1)
                rows += rows_of("detected", name, (best == evaluators.classes.index(pictures.class_noun)).float())
        return rows
