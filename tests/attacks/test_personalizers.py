from __future__ import annotations

import torch
from persbench.attacks.personalizers.lora import TARGETS, Lora, LoraConfig

from persbench.contracts import Words

PHOTOS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_lora_changes_its_targets_by_low_rank_and_nothing_else(adversary) -> None:
    base = adversary.public
    tuned = Lora(LoraConfig(rank=2, steps=3, rate=1e-2)).personalize(
        PHOTOS, Words("sks", "person"), base, adversary, torch.Generator().manual_seed(0)
    )
    changed = tuned.difference(base)
    assert changed
    state = base.state()
    for name, tensor in changed.items():
        assert any(f".{target}." in name for target in TARGETS["attention"]), name
        rank = torch.linalg.matrix_rank(tensor - state[name], rtol=1e-3)
        assert rank <= 2, name


def test_lora_leaves_the_global_generator_and_its_model_alone(adversary) -> None:
    base = adversary.public
    before = {name: tensor.clone() for name, tensor in base.state().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    lora = Lora(LoraConfig(steps=2, targets="all"))
    first = lora.personalize(PHOTOS, Words("sks", "person"), base, adversary, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state().items())
    torch.manual_seed(99)
    second = lora.personalize(PHOTOS, Words("sks", "person"), base, adversary, torch.Generator().manual_seed(0))
    assert not second.difference(first)
