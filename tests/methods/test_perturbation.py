"""The core of the perturbations against values computed by hand on tiny tensors."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from persbench.methods import perturbation
from persbench.methods.perturbation import (
    CROSS_ATTENTION_KEYS_AND_VALUES,
    DENOISER_AND_TEXT_ENCODER,
    DreamBoothSurrogateConfig,
    Perturbation,
    PerturbationConfig,
    Prior,
    Surrogate,
    ascend,
    denoising_loss,
    project,
    random_start,
)

from persbench import pictures
from persbench.contracts import Budget, Card, Language, Subject, Words
from persbench.diffusion import DiffusionModel
from persbench.errors import PersbenchError

WORDS = Words("sks", "person")
LANGUAGE = Language(("sks", "t@t"), ("robot", "person"), (), "an empty scene")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*values: float) -> torch.Tensor:
    """One photo of one row for each three values."""
    return torch.tensor(values).view(-1, 3, 1, 1)


@dataclass(frozen=True)
class JumpConfig(PerturbationConfig):
    budget_levels: float = 8.0
    steps: int = 1
    step_levels: float = 2.0


class Jump(Perturbation):
    """Far out of any budget."""

    Config = JumpConfig
    card = Card("jump")

    def perturb(self, subject, base, radius, rng):
        return subject.photos + torch.tensor([1.0, -1.0, radius / 2]).view(1, 3, 1, 1)


@pytest.mark.parametrize(("levels", "whole"), [(8.0, 8), (6.4, 6), (7.65, 7), (0.5, 0)])
def test_released_photos_keep_to_the_budget_as_saved(levels: float, whole: int) -> None:
    photos = pixels(100 / 255, 100 / 255, 100 / 255, 254 / 255, 1 / 255, 0.0)
    subject = Subject("ada", photos, WORDS, LANGUAGE)
    released = Jump().protect([subject], SimpleNamespace(device="cpu"), Budget(levels), generator()).photos["ada"]
    change = pictures.to_levels(released).int() - pictures.to_levels(photos).int()
    assert change[0, :2].flatten().tolist() == [whole, -whole]
    assert change[1, :2].flatten().tolist() == [min(whole, 1), -min(whole, 1)]


def test_step_scales_with_the_budget_of_the_run() -> None:
    assert Jump().step(8 / 255) == pytest.approx(2 / 255)
    assert Jump().step(16 / 255) == pytest.approx(4 / 255)


def test_random_start_fills_the_ball_and_stays_in_range() -> None:
    photos = torch.cat([torch.zeros(1, 3, 20, 20), torch.full((1, 3, 20, 20), 0.5)])
    started = random_start(photos, 0.1, generator())
    assert started[0].min() == 0 and started[0].max() <= 0.1
    assert -0.1 <= (started[1] - 0.5).min() < -0.09 and 0.09 < (started[1] - 0.5).max() <= 0.1 + 1e-6


def test_ascent_by_sign_and_by_unit_gradient() -> None:
    slope, start = pixels(3.0, -4.0, 0.0), pixels(0.5, 0.5, 0.5)

    def objective(photos, step):
        return (slope * photos).sum()

    def run(**how):
        return ascend(objective, start, around=start, **how).flatten().tolist()

    assert run(radius=0.25, step=0.1, steps=2) == pytest.approx([0.7, 0.3, 0.5])
    assert run(radius=0.25, step=0.1, steps=9) == pytest.approx([0.75, 0.25, 0.5])  # the ball
    assert run(radius=0.9, step=0.1, steps=9) == pytest.approx([1.0, 0.0, 0.5])  # the range of pixels
    assert run(radius=0.25, step=0.1, steps=2, minimise=True) == pytest.approx([0.3, 0.7, 0.5])
    assert run(radius=0.25, step=0.1, steps=1, direction="l2") == pytest.approx([0.56, 0.42, 0.5])  # (3, -4, 0) / 5
    assert run(radius=0.25, step=lambda number: torch.tensor(0.1 * number), steps=2) == pytest.approx([0.6, 0.4, 0.5])


def test_ascent_averages_the_gradient_over_views() -> None:
    start = pixels(0.5, 0.5, 0.5)
    views = [lambda photos: photos, lambda photos: -3 * photos, lambda photos: photos.flip(1) * pixels(0.0, 1.0, 5.0)]
    # Gradients of the sum: (1, 1, 1), (-3, -3, -3) and, flipped, (5, 1, 0): together (3, -1, -2).
    found = ascend(lambda photos, step: photos.sum(), start, around=start, radius=0.2, step=0.1, steps=1, views=views)
    assert found.flatten().tolist() == pytest.approx([0.6, 0.4, 0.4])


def test_denoising_loss_of_a_linear_model() -> None:
    """Latent = photo, noise 2, prediction 3 (x + 2) + state: (3 (x + 2) + 1 - 2)^2."""
    model = SimpleNamespace(
        encode=lambda photos, rng: photos,
        loss=lambda latents, states, rng: (3 * (latents + 2) + states.view(-1, 1, 1, 1) - 2).square().mean(dim=(1, 2, 3)),
    )
    found = denoising_loss(model, torch.ones(1, 1, 1), generator())(pixels(1.0, 1.0, 1.0, 0.0, 0.0, 0.0), 0)
    assert found.item() == (64 + 25) / 2


class Scalar(torch.nn.Module):
    """A part of a model that is one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(value), requires_grad=False)


class Linear:
    """Prediction: weight times latent; true value: the latent's text state. A loss that is done by hand."""

    precision = "fp32"

    def __init__(self) -> None:
        self.unet, self.text_encoder = Scalar(1.0), Scalar(0.0)

    def state(self):
        return {"unet.weight": self.unet.weight, "text_encoder.weight": self.text_encoder.weight}

    def clone(self, *parts):
        twin = Linear()
        for part in ("unet", "text_encoder"):
            setattr(twin, part, Scalar(getattr(self, part).weight.item()) if part in parts else getattr(self, part))
        return twin

    def encode(self, photos, rng=None):
        return photos[:, :1]

    def embed(self, prompts):
        return torch.tensor([{"a photo of sks person": 1.0, "a photo of a person": 4.0}[p] for p in prompts]) + self.text_encoder.weight

    def loss(self, latents, states, rng):
        return (self.unet.weight * latents - states.view(-1, 1, 1, 1)).square().mean(dim=(1, 2, 3))


def test_surrogate_goes_down_the_dreambooth_loss_with_prior_preservation(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(perturbation, "descend", lambda optimizer, loss, *_: seen.append(loss.item()))
    photos = torch.full((2, 3, 1, 1), 3.0)  # (1 * 3 - 1)^2 = 4
    prior = Prior(torch.full((5, 1, 1, 1), 2.0), 0.5)  # (1 * 2 - 4)^2 = 4, weight 0.5
    Surrogate(Linear(), WORDS, rate=0.1, batch=3).train(photos, 2, generator())
    Surrogate(Linear(), WORDS, rate=0.1, batch=3, prior=prior).train(photos, 1, generator())
    assert seen == [4.0, 4.0, 6.0]


def test_surrogate_keeps_its_moments_until_it_goes_back() -> None:
    """AdamW goes a rate's length at first whatever the gradient; with moments of a loss that turned, less."""
    base, photos = Linear(), torch.ones(1, 3, 1, 1)
    surrogate = Surrogate(base, WORDS, rate=0.1)
    surrogate.parameters[0].data.fill_(2.0)  # gradient 2 (2 - 1) = 2, clipped to 1
    surrogate.train(photos, 1, generator())
    assert surrogate.parameters[0].item() == pytest.approx(2 * (1 - 0.1 * 0.01) - 0.1)
    assert not surrogate.parameters[0].requires_grad and surrogate.parameters[0].grad is None
    zero = [torch.tensor(0.0)]  # there the gradient is -2, clipped to -1
    surrogate.parameters[0].data.fill_(0.0)
    surrogate.train(photos, 1, generator())
    assert abs(surrogate.parameters[0].item()) < 0.02
    surrogate.restore(zero)
    before = surrogate.snapshot()
    surrogate.train(photos, 1, generator())
    assert surrogate.parameters[0].item() == pytest.approx(0.1)
    assert before == zero and base.unet.weight.item() == 1.0


def test_surrogate_can_train_the_text_encoder_too() -> None:
    surrogate = Surrogate(Linear(), WORDS, rate=0.1, trained=DENOISER_AND_TEXT_ENCODER)
    surrogate.train(torch.full((1, 3, 1, 1), 3.0), 1, generator())
    assert surrogate.model.text_encoder.weight.item() == pytest.approx(0.1)  # towards a state of 3
    assert surrogate.states().item() == pytest.approx(1.1)


def test_surrogate_says_when_its_loss_is_not_finite() -> None:
    surrogate = Surrogate(Linear(), WORDS, rate=0.1)
    with pytest.raises(PersbenchError, match="lower the rate"):
        surrogate.train(torch.full((1, 3, 1, 1), float("inf")), 1, generator())


def test_surrogate_of_a_real_model_trains_what_it_is_told_and_leaves_the_base_alone(tiny_base) -> None:
    base = DiffusionModel.load(tiny_base)
    before = {name: weight.clone() for name, weight in base.state().items()}
    photos = torch.rand(2, 3, 32, 32, generator=generator())
    config = DreamBoothSurrogateConfig(8.0, 1, 1.0, class_pictures=2, class_inference_steps=2)
    prior = Prior.draw(WORDS, base, config, generator())
    assert prior.latents.shape == (2, 4, 16, 16)
    both = Surrogate.dreambooth(WORDS, base, config, generator())
    assert both.prior is not None and torch.equal(both.prior.latents, prior.latents)
    assert len(both.parameters) == len([*base.unet.parameters(), *base.text_encoder.parameters()])
    surrogate = Surrogate(base, WORDS, rate=1e-3, trained=CROSS_ATTENTION_KEYS_AND_VALUES, prior=prior)
    surrogate.train(photos, 2, generator())
    changed = surrogate.model.difference(base)
    assert changed and all(".attn2.to_k." in name or ".attn2.to_v." in name for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in base.state().items())
    start = torch.full_like(photos, 0.5)
    moved = ascend(denoising_loss(surrogate.model, surrogate.states(), generator()), start, around=start, radius=0.1, step=0.1, steps=1)
    assert (moved - start).abs().max().item() == pytest.approx(0.1)
    assert torch.equal(moved, project(moved, start, 0.1))
