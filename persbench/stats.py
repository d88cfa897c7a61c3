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


def worst_case(by_attack: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, str]]:
    """Per subject the minimum over attacks of the mean over seeds, and the attack that reaches it.

    An empty sequence is a void control: that attack does not learn the subject from clean photos either, so it is no threat to him.
    A subject that an attack has no entry for was not measured under it; it is left out, as is one that is void everywhere.

    >>> worst_case({"lora": {"ada": [0.8], "boris": [0.4, 0.6]}, "jpeg+lora": {"ada": [0.6], "boris": []}})
    {'ada': (0.6, 'jpeg+lora'), 'boris': (0.5, 'lora')}
    >>> worst_case({"lora": {"ada": [0.8]}, "jpeg+lora": {}})
    {}
    """
    shared = set.intersection(*(set(values) for values in by_attack.values())) if by_attack else set()
    found = {}
    for subject in sorted(shared):
        means = [(statistics.fmean(values[subject]), attack) for attack, values in by_attack.items() if values[subject]]
        if means:
            found[subject] = min(means)
    return found


def differences(first: Mapping[tuple[str, ...], float], second: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """First minus second over the keys (subject, attack, seed, ...) that both have, averaged per subject.

    >>> differences({("ada", "0"): 0.5, ("ada", "1"): 1.0, ("boris", "0"): 0.3}, {("ada", "0"): 0.25, ("ada", "1"): 0.5})
    {'ada': 0.375}
    """
    by_subject: dict[str, list[float]] = {}
    for key in sorted(first.keys() & second.keys()):
        by_subject.setdefault(key[0], []).append(first[key] - second[key])
    return {subject: statistics.fmean(values) for subject, values in by_subject.items()}


@dataclass(frozen=True)
class Difference:
    """A paired difference: mean over subjects with its 95% interval, and the p value (two-sided) of there being none."""

    interval: Interval
    p: float
    by_subject: Mapping[str, float]


def paired(
    first: Mapping[tuple[str, ...], float], second: Mapping[tuple[str, ...], float], resamples: int = 5000, seed: int = 0
) -> Difference | None:
    """The difference of two methods over the keys (subject, attack, seed, ...) that both have; None where they share none.

    The interval resamples subjects; the p value is of the test that flips the signs of whole subjects (exact up to 12 of them).

    >>> found = paired({("ada",): 0.5, ("boris",): 1.0, ("carl",): 0.3}, {("ada",): 0.25, ("boris",): 0.5})
    >>> found.interval, found.p
    (Interval(mean=0.375, low=0.25, high=0.5, subjects=2), 0.5)
    """
    found = differences(first, second)
    if not found:
        return None
    p = 1.0
    if len(found) > 1 and any(found.values()):
        from scipy.stats import permutation_test

        generator, values = np.random.default_rng(seed), np.array(list(found.values()))
        p = float(permutation_test((values,), np.mean, permutation_type="samples", n_resamples=resamples, rng=generator).pvalue)
    return Difference(bootstrap({subject: [value] for subject, value in found.items()}, resamples, seed), p, found)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number by the step-down rule of Holm (1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Rank:
    """A place, 1 the best, with its 95% interval; equal means share the better place."""

    place: int
    low: int
    high: int


def ranks(values: Mapping[str, Mapping[str, float]], resamples: int = 5000, seed: int = 0) -> dict[str, Rank]:
    """Places by the mean over subjects, with intervals that resample subjects for all at once; names without values have none.

    `values` holds the value of each subject for each name. A draw counts what a name has of the drawn subjects.

    >>> ranks({"a": {"ada": 0.9, "boris": 0.8}, "b": {"ada": 0.1, "boris": 0.85}})
    {'a': Rank(place=1, low=1, high=2), 'b': Rank(place=2, low=1, high=2)}
    """
    names = [name for name, found in values.items() if found]
    subjects = sorted({subject for name in names for subject in values[name]})
    if not names:
        return {}
    table = np.array([[values[name].get(subject, np.nan) for subject in subjects] for name in names])
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)

    def places(draws: np.ndarray) -> np.ndarray:
        """Places (names, draws) for how often (draws, subjects) each subject was drawn; a name without any drawn subject comes last."""
        total, count = filled @ draws.T, known @ draws.T
        means = np.where(count > 0, total / np.maximum(count, 1), -np.inf).round(12)  # the same means of other sums are equal
        return 1 + (means[None] > means[:, None]).sum(axis=1)

    place = places(np.ones((1, len(subjects))))[:, 0]
    drawn = np.random.default_rng(seed).multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), size=resamples)
    low, high = np.percentile(np.concatenate([places(part) for part in np.array_split(drawn, 50)], axis=1), (2.5, 97.5), axis=1)
    return {
        name: Rank(int(place[i]), int(min(np.floor(low[i]), place[i])), int(max(np.ceil(high[i]), place[i])))
        for i, name in enumerate(names)
    }
