"""APDM's preference loss and its simulated personalization against values computed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from persbench.methods import apdm
from persbench.methods.apdm import APDM, preference
from torch import nn

from persbench.contracts import Budget, Language, Subject, Words


class Scaler:
    """Predicts `weight` times the noisy latent; noise is 2, so that a latent x has the error (weight * (x + 2) - 2)^2."""

    def __init__(self, weight: float) -> None:
        self.weight = torch.tensor(weight, requires_grad=True)

    def noise(self, shape, rng):
        return torch.full(tuple(shape), 2.0)

    def timesteps(self, count, rng):
        return torch.arange(count)

    def add_noise(self, latents, noise, timesteps):
        assert timesteps.tolist() == [0, 1, 0, 1]  # a pair shares its timestep
        return latents + noise

    def target(self, latents, noise, timesteps):
        return noise

    def predict(self, noisy, timesteps, states):
        assert len(states) == len(noisy)
        return self.weight * noisy


def test_the_preference_is_the_log_sigmoid_of_what_changed_since_the_base_model() -> None:
    unwanted, wanted = torch.full((2, 1, 1, 1), 1.0), torch.zeros(2, 1, 1, 1)
    student, teacher = Scaler(2.0), Scaler(1.0)
    # wanted: (2*2 - 2)^2 - (2 - 2)^2 = 4; unwanted: (2*3 - 2)^2 - (3 - 2)^2 = 15; preferred by 11
    loss = preference(unwanted, wanted, torch.zeros(2, 3, 4), student, teacher, 0.1, torch.Generator())
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.1 * (4 - 15))), rel=1e-5)
    loss.backward()
    # d(4 - 15)/dw = 2*2*2 - 2*4*3 = -16, times beta * sigmoid(beta * (4 - 15))
    assert student.weight.grad.item() == pytest.approx(-16 * 0.1 / (1 + math.exp(1.1)), rel=1e-5)
    assert teacher.weight.grad is None
    assert preference(unwanted, wanted, torch.zeros(2, 3, 4), teacher, teacher, 9.0, None).item() == pytest.approx(math.log(2))


def test_gradients_are_summed_along_a_personalization_that_starts_at_the_released_weights(monkeypatch) -> None:
    class Model(SimpleNamespace):
        def clone(self, *_):
            twin = Model(**vars(self))
            twin.unet = nn.Linear(1, 1, bias=False)
            twin.unet.weight.data.fill_(self.unet.weight.item())
            return twin

        def encode(self, photos):
            return photos

        def embed(self, prompts):
            return torch.zeros(len(prompts), 1)

    terms: list[tuple[float, list[str]]] = []

    def weighted(found, student, *_):
        terms.append([(weight, samples.prompts[0], samples.latents.mean().item()) for weight, samples in found])
        # The personalization's gradient is 1; that of L_ppl is 2 w, at the copy.
        return student.unet.weight.sum() if len(found) == 2 else student.unet.weight.square().sum()

    seen: list[float] = []

    def finetune(parameters, loss, **options):
        assert options["clip"] == math.inf
        (weight,) = parameters
        for step in range(2):
            weight.requires_grad_(True)
            value = loss(step)
            value.backward()
            assert value.item() == 0.0
            seen.append(weight.grad.item())
            weight.grad = None

    pool = SimpleNamespace(latents={"person": torch.ones(1, 1, 1, 1)})
    monkeypatch.setattr(apdm, "teacher_pool", lambda *_: pool)
    monkeypatch.setattr(apdm, "weighted", weighted)
    monkeypatch.setattr(apdm, "preference", lambda unwanted, wanted, states, student, *_: 3 * student.unet.weight.sum())
    monkeypatch.setattr(apdm, "finetune", finetune)
    base = Model(unet=nn.Linear(1, 1, bias=False), precision="fp32")
    base.unet.weight.data.fill_(1.0)
    subject = Subject("ada", torch.zeros(1, 1, 1, 1), Words("sks", "person"), Language(("sks",), ("person",), (), ""))
    method = APDM(APDM.Config(simulated_steps=2, simulated_rate=0.1, prior_weight=0.5, class_pictures=1))
    released = method.protect([subject], base, Budget(), torch.Generator()).model
    first = 0.999 - 0.1  # AdamW: decay by rate * 0.01, then the rate times the sign
    second = first * 0.999 - 0.1
    assert seen == pytest.approx([2 * first + 2 * second + 6] * 2, rel=1e-5)
    assert released.unet.weight.item() == 1.0
    person, sks = "a photo of a person", "a photo of sks person"
    assert terms[:2] == [[(1.0, sks, 0.0), (0.5, person, 1.0)], [(0.5, person, 1.0)]]
