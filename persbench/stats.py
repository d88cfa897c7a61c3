"""Statistics of protections: everything follows from per-picture rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; both ends are the mean where one subject gives no interval."""

    mean: float
    low: float
    high: float
    subjects: int


def bootstrap(values: Mapping[str, Sequence[float]], resamples: int = 5000, seed: int = 0) -> Interval:
    """Mean over subjects of the mean of each, with a percentile bootstrap interval that resamples subjects (clusters).

    `values` holds the values of each subject. Raises ValueError without any.

    >>> bootstrap({"ada": [1.0, 0.0], "boris": [1.0]}).mean
    0.75
    """
    means = np.array([statistics.fmean(v) for v in values.values() if len(v)])
    if not len(means):
        raise ValueError("no values")
    mean = float(means.mean())
    if len(means) == 1:
        return Interval(mean, mean, mean, 1)
    from scipy.stats import bootstrap as resample

    found = resample((means,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed))
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high), len(means))


def protection(leak: float, control: float, floor: float, margin: float) -> float | None:
    """(control - leak) / (control - floor), or None (void) where the control did not learn the subject by `margin`.

    0: the protection did not help; 1: as if the photos had never been seen.

    >>> protection(0.3, 0.5, 0.1, 0.25)
    0.5
    >>> protection(0.3, 0.3, 0.1, 0.25) is None
    True
    """
    learned = control - floor
    return None if learned < margin else (control - leak) / learned


def worst_case(by_attack: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Per subject the minimum over attacks; subjects that an attack has no value for are left out.

    >>> worst_case({"lora": {"ada": 0.8, "boris": 0.4}, "jpeg+lora": {"ada": 0.6, "boris": 0.5}})
    {'ada': 0.6, 'boris': 0.4}
    """
    shared = set.intersection(*(set(values) for values in by_attack.values())) if by_attack else set()
    first = next(iter(by_attack.values()), {})
    return {subject: min(values[subject] for values in by_attack.values()) for subject in first if subject in shared}
