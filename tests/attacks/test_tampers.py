"""Tampers: what they change in the model or the training, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from persbench.attacks.personalizers.lora import LoraConfig
from persbench.attacks.tampers.finetune_first import FinetuneFirst, FinetuneFirstConfig
from persbench.attacks.tampers.hotter import Hotter
from persbench.attacks.tampers.longer import FactorConfig, Longer
from persbench.attacks.tampers.weight_merge import WeightMerge, WeightMergeConfig

from persbench import registry
from persbench.contracts import NoConfig
from persbench.errors import PersbenchError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(model, amount: float = 0.5):
    """A release in which one weight of the denoiser is other than in the public model, with the weight's name."""
    name = "unet.conv_in.weight"
    return name, model.with_weights({name: model.state()[name] + amount})


@pytest.mark.parametrize("name", registry.names("tampers"))
def test_the_models_given_stay_as_they_are(name, adversary) -> None:
    tamper = registry.load("tampers", name)()
    if not tamper.changes_model:
        return
    if name == "finetune-first":
        tamper = FinetuneFirst(FinetuneFirstConfig(steps=1))
    weight, release = changed(adversary.public)
    before = {part: {n: tensor.clone() for n, tensor in model.state().items()} for part, model in (("r", release), ("p", adversary.public))}
    state = torch.get_rng_state()
    found = tamper.tamper(release, adversary, rng())
    assert torch.equal(torch.get_rng_state(), state)
    assert weight in found.difference(release)
    for part, model in (("r", release), ("p", adversary.public)):
        assert all(torch.equal(before[part][n], tensor) for n, tensor in model.state().items())


def test_weight_merge_is_the_average(adversary) -> None:
    name, release = changed(adversary.public, 0.5)

    def merged(share: float):
        return WeightMerge(WeightMergeConfig(share=share)).tamper(release, adversary, rng())

    assert not merged(0.0).difference(release)
    assert not merged(1.0).difference(adversary.public)
    assert list(merged(0.25).difference(release)) == [name]
    assert torch.allclose(merged(0.25).state()[name], adversary.public.state()[name] + 0.75 * 0.5, atol=1e-6)
    assert not WeightMerge().tamper(adversary.public, adversary, rng()).difference(adversary.public)


def test_finetune_first_learns_the_pictures_of_all_classes(adversary) -> None:
    asked = []
    flat = torch.full((2, 3, 32, 32), 0.5)

    def class_pictures(noun: str) -> torch.Tensor:
        asked.append(noun)
        return flat

    adversary = replace(adversary, class_pictures=class_pictures)
    model = adversary.public
    found = FinetuneFirst(FinetuneFirstConfig(steps=10, rate=3e-3)).tamper(model, adversary, rng())
    assert sorted(asked) == sorted(adversary.language.class_nouns)
    assert {name.split(".")[0] for name in found.difference(model)} == {"unet"}

    def loss(which) -> float:
        with torch.no_grad():
            latents, states = model.encode(flat).repeat(16, 1, 1, 1), model.embed(["a photo of a robot"]).expand(32, -1, -1)
            return which.loss(latents, states, rng(1)).mean().item()

    assert loss(found) < 0.9 * loss(model)
    again = FinetuneFirst(FinetuneFirstConfig(steps=2)).tamper(model, adversary, rng())
    assert not FinetuneFirst(FinetuneFirstConfig(steps=2)).tamper(model, adversary, rng()).difference(again)


def test_finetune_first_asks_with_class_prompts(adversary, monkeypatch) -> None:
    seen = []
    embed = type(adversary.public).embed
    monkeypatch.setattr(type(adversary.public), "embed", lambda self, prompts: seen.extend(prompts) or embed(self, prompts))
    FinetuneFirst(FinetuneFirstConfig(steps=1)).tamper(adversary.public, adversary, rng())
    assert seen == [f"a photo of a {noun}" for noun in adversary.language.class_nouns]


def test_longer_and_hotter_multiply_one_number() -> None:
    config = LoraConfig(steps=150, rate=1e-3)
    assert Longer().train(config) == replace(config, steps=300)
    assert Hotter().train(config) == replace(config, rate=2e-3)
    tripled = Longer(FactorConfig(factor=1.5)).train(replace(config, steps=5))
    assert tripled.steps == 8 and isinstance(tripled.steps, int)
    assert not Longer.changes_model and not Hotter.changes_model
    for tamper, name in ((Longer(), "steps"), (Hotter(), "rate")):
        with pytest.raises(PersbenchError, match=f"no {name} to multiply"):
            tamper.train(NoConfig())


def test_tampers_of_the_model_leave_the_training_alone() -> None:
    config = LoraConfig()
    assert WeightMerge().train(config) is config and FinetuneFirst().train(config) is config
