"""What did everybody else lose?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from persbench.contracts import Card, Evidence, Metric, Row, rows_of
from persbench.tracks.base import Evaluators

from .lpips import lpips_network


class Collateral(Metric):
    """Drift of the released model on class prompts: LPIPS to the base model's pictures of the same noise, and class still right.

    The other half of collateral, personalization of bystanders, follows from the identity rows of their picture sets.
    """

    card: ClassVar[Card] = Card("Collateral damage", paper="prior drift as asked for in the PersGuard reviews")
    higher_is_better: ClassVar[Mapping[str, bool]] = {"prior_lpips": False, "prior_class": True, "prior_class_base": True}

    def measure(self, evidence: Evidence, evaluators: Evaluators) -> list[Row]:
        rows: list[Row] = []
        for name, now in evidence.sets.items():
            kind, _, noun = name.partition(":")
            if kind != "prior":
                continue
            before = evidence.sets[f"prior_base:{noun}"]
            rows += rows_of("prior_lpips", name, lpips_network()(now.pictures, before.pictures))
            if noun in evaluators.classes:
                index = evaluators.classes.index(noun)
                for metric, pictures in (("prior_class", now.pictures), ("prior_class_base", before.pictures)):
                    rows += rows_of(metric, name, (evaluators.class_probabilities(pictures).argmax(dim=1) == index).float())
        return rows
