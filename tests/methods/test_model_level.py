"""What all protections of the model must do: two subjects at once, and no change but the intended one."""

from __future__ import annotations

import pytest
import torch

from persbench import registry
from persbench.contracts import Budget, Subject, Words
from persbench.diffusion import DiffusionModel
from persbench.tracks.avatars import Avatars

PERSGUARD = {"steps": 4, "rate": 1e-3, "pool": 1, "others_pool": 1, "warmup_steps": 2, "rehearsal_steps": 1}
PATTERN = {**PERSGUARD, "away_steps": 1, "marker_steps": 1}
SHORT = {
    "imma": {"steps": 2, "rate": 1e-3, "inner_rate": 1e-3},
    "apdm": {"steps": 2, "simulated_steps": 2, "class_pictures": 2},
    "badt2i": {"steps": 2, "pool": 2, "batch": 2},
    "badt2i pixel": {"steps": 2, "pool": 2, "batch": 2, "variant": "pixel"},
    "shortcut": {"steps": 2, "class_pictures": 2},
    "shortcut inversion": {"steps": 2, "personalizer": "textual-inversion", "rate": 1e-2},
    "persguard-target": PERSGUARD,
    "persguard-erasure": PERSGUARD,
    "persguard-pattern": PATTERN,
    "persguard-target-universal": PERSGUARD,
    "persguard-erasure-universal": PERSGUARD,
    "persguard-pattern-universal": PATTERN,
}
LEFT_OUT = Avatars.language.identifiers[-3:]


def photos(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


SUBJECTS = [
    Subject("ada", photos(1), Words("sks", "person"), Avatars.language),
    Subject("bolt", photos(2), Words("t@t", "robot"), Avatars.language),
]


def wanted(case: str, name: str) -> bool:
    """Whether a method may change a weight."""
    if case == "imma":
        return name.startswith("unet.") and any(part in name for part in ("to_q", "to_k", "to_v", "to_out"))
    if case == "shortcut inversion":
        return name.endswith("token_embedding.weight")
    return name.startswith("unet.") or (case.startswith("persguard") and name.endswith("token_embedding.weight"))


@pytest.mark.parametrize("case", [case for case in SHORT if not case.startswith("persguard")])
def test_two_subjects_are_protected_and_only_what_is_meant_changes(case, tiny_base) -> None:
    check(case, DiffusionModel.load(tiny_base))


@pytest.mark.parametrize("case", [case for case in SHORT if case.startswith("persguard")])
def test_the_same_for_persguard(case, tiny_epsilon) -> None:
    check(case, DiffusionModel.load(tiny_epsilon))


def check(case: str, base: DiffusionModel) -> None:
    method = registry.configure(case, registry.load("methods", case.split()[0]), SHORT[case])
    before = {name: weight.clone() for name, weight in base.state().items()}

    def protect() -> dict[str, torch.Tensor]:
        release = method.protect(SUBJECTS, base, Budget(), torch.Generator().manual_seed(0))
        assert not release.photos and method.changes == {"model"}
        assert not any(parameter.requires_grad for parameter in release.model.unet.parameters())
        return release.model.difference(base)

    torch.manual_seed(0)
    changed = protect()
    assert changed and all(wanted(case, name) and weight.isfinite().all() for name, weight in changed.items())
    assert all(torch.equal(weight, before[name]) for name, weight in base.state().items())
    for name in (name for name in changed if name.endswith("token_embedding.weight")):
        rows = (changed[name] != before[name]).any(dim=1).nonzero().flatten().tolist()
        tokens = set(base.tokenizer.convert_ids_to_tokens(rows))
        assert tokens >= {token for subject in SUBJECTS for token in base.tokenizer.tokenize(subject.words.identifier)}
        assert not tokens & {f"{word}</w>" for word in (*LEFT_OUT, "person", "robot")}
    torch.manual_seed(1)  # which must not matter
    again = protect()
    assert changed.keys() == again.keys() and all(torch.equal(weight, again[name]) for name, weight in changed.items())
