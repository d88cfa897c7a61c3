from __future__ import annotations

import numpy as np
import pytest

from persbench.stats import Rank, bootstrap, differences, holm, paired, protection, ranks, worst_case


def test_protection_by_hand() -> None:
    assert protection(leak=0.2, control=0.6, floor=0.1, margin=0.25) == pytest.approx(0.8)
    assert protection(leak=0.7, control=0.6, floor=0.1, margin=0.25) == pytest.approx(-0.2)
    assert protection(leak=0.1, control=0.3, floor=0.1, margin=0.25) is None


def test_bootstrap_resamples_subjects_not_values() -> None:
    # Many equal values of one subject must not narrow the interval.
    few = bootstrap({"a": [0.0], "b": [1.0]})
    many = bootstrap({"a": [0.0] * 500, "b": [1.0] * 500})
    assert few == many
    assert (few.low, few.mean, few.high) == (0.0, 0.5, 1.0)


def test_bootstrap_is_reproducible_and_brackets_the_mean() -> None:
    values = {str(i): [i / 10] for i in range(10)}
    first, second = bootstrap(values), bootstrap(values)
    assert first == second
    assert first.mean == pytest.approx(0.45)
    assert first.low < first.mean < first.high


def test_bootstrap_of_one_subject_has_no_interval() -> None:
    only = bootstrap({"a": [0.2, 0.4]})
    assert only.low == only.mean == only.high == pytest.approx(0.3)
    with pytest.raises(ValueError, match="no values"):
        bootstrap({})


def test_worst_case_is_per_subject() -> None:
    found = worst_case({"x": {"a": [1.0], "b": [0.1]}, "y": {"a": [0.5], "b": [0.9]}})
    assert found == {"a": (0.5, "y"), "b": (0.1, "x")}


def test_worst_case_averages_seeds_first_and_passes_over_voids() -> None:
    assert worst_case({"x": {"a": [0.0, 1.0]}, "y": {"a": [0.6]}}) == {"a": (0.5, "x")}
    assert worst_case({"x": {"a": []}, "y": {"a": [0.6]}}) == {"a": (0.6, "y")}
    assert worst_case({"x": {"a": []}}) == {}
    assert worst_case({"x": {}, "y": {"a": [0.6]}}) == {}  # not measured is not void
    assert worst_case({}) == {}


def test_paired_differences_use_shared_keys_and_cluster_by_subject() -> None:
    first = {("a", "lora", "0"): 0.9, ("a", "lora", "1"): 0.7, ("b", "lora", "0"): 0.5, ("c", "lora", "0"): 9.0}
    second = {("a", "lora", "0"): 0.5, ("a", "lora", "1"): 0.5, ("b", "lora", "0"): 0.4, ("d", "lora", "0"): 9.0}
    assert differences(first, second) == {"a": pytest.approx(0.3), "b": pytest.approx(0.1)}
    found = paired(first, second)
    assert found is not None
    assert found.interval.mean == pytest.approx(0.2)  # of subjects, not of cells
    assert (found.interval.low, found.interval.high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert found.p == 0.5  # both signs the same: 2 of 4 ways
    assert paired(first, {}) is None


def test_p_values_are_exact_for_few_subjects() -> None:
    names = [str(number) for number in range(8)]
    ahead = paired({(n,): 0.5 + 0.01 * i for i, n in enumerate(names)}, {(n,): 0.0 for n in names})
    assert ahead is not None and ahead.p == pytest.approx(2 / 2**8)
    same = paired({(n,): 0.5 for n in names}, {(n,): 0.5 for n in names})
    assert same is not None and same.p == 1
    one = paired({("a",): 0.9}, {("a",): 0.1})
    assert one is not None and one.p == 1


def test_p_values_are_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(0)
    zero = {(str(i),): 0.0 for i in range(10)}
    found = [paired({key: generator.normal() for key in zero}, zero, resamples=500) for _ in range(100)]
    assert 0.0 < np.mean([each.p <= 0.05 for each in found if each]) <= 0.1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_ranks_and_their_intervals() -> None:
    certain = ranks({"a": dict.fromkeys("xyz", 0.9), "b": dict.fromkeys("xyz", 0.5), "c": dict.fromkeys("xyz", 0.5), "d": {}})
    assert certain == {"a": Rank(1, 1, 1), "b": Rank(2, 2, 2), "c": Rank(2, 2, 2)}
    close = ranks({"a": {"x": 0.9, "y": 0.1, "z": 0.6}, "b": {"x": 0.1, "y": 0.9, "z": 0.5}})
    assert close == {"a": Rank(1, 1, 2), "b": Rank(2, 1, 2)}
    assert ranks({}) == {}


def test_shared_ups_and_downs_of_subjects_do_not_widen_ranks() -> None:
    # The intervals of both means overlap by far, yet "a" is ahead for every subject.
    hard = {str(i): i / 10 for i in range(10)}
    found = ranks({"a": {s: v + 0.05 for s, v in hard.items()}, "b": hard})
    assert found == {"a": Rank(1, 1, 1), "b": Rank(2, 2, 2)}
