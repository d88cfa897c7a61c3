from __future__ import annotations

import pytest

from persbench.stats import bootstrap, protection, worst_case


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
    assert worst_case({"x": {"a": 1.0, "b": 0.1}, "y": {"a": 0.5, "b": 0.9}}) == {"a": 0.5, "b": 0.1}
