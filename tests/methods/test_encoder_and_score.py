"""The protections by encoder and score: each rule against values computed by hand, and a run of each on tiny base models."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from persbench.methods import editshield, mist, sds
from persbench.methods.advdm import AdvDM
from persbench.methods.diffusionguard import DiffusionGuard
from persbench.methods.editshield import EditShield
from persbench.methods.mist import Mist, MistConfig
from persbench.methods.perturbation import random_start
from persbench.methods.photoguard_diffusion import towards_grey
from persbench.methods.photoguard_encoder import PhotoGuardEncoder, PhotoGuardEncoderConfig, towards_zero
from persbench.methods.pid import PID
from persbench.methods.sds import SDS, SDSConfig

from persbench import pictures, registry
from persbench.contracts import Budget, Language, Subject, Words
from persbench.diffusion import DiffusionModel

METHODS = ("photoguard-encoder", "photoguard-diffusion", "advdm", "mist", "sds", "pid", "diffusionguard", "editshield")
LANGUAGE = Language(("sks", "t@t"), ("robot", "person"), (), "an empty scene")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def subject(photos: torch.Tensor) -> Subject:
    return Subject("ada", photos, Words("sks", "person"), LANGUAGE)


def pixels(*values: float) -> torch.Tensor:
    """One photo of one pixel for each three values."""
    return torch.tensor(values).view(-1, 3, 1, 1)


class Linear:
    """Latent: 2 x. Noise: 2. Noisy latent: latent + noise. Predicted noise: 3 times the noisy latent plus the text state."""

    device = torch.device("cpu")
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)

    def __init__(self) -> None:
        self.prompts, self.times = [], []

    def embed(self, prompts):
        self.prompts += prompts
        return torch.ones(len(prompts), 1, 1)

    def encode(self, photos, rng=None):
        return 2 * photos

    def posterior(self, photos):
        return 2 * photos, 3 * photos - 1

    def noise(self, shape, rng):
        return torch.full(tuple(shape), 2.0)

    def timesteps(self, count, rng):
        return torch.full((count,), 7)

    def add_noise(self, latents, noise, timesteps):
        return latents + noise

    def predicted_noise(self, noisy, timesteps, states):
        self.times.append(timesteps.tolist())
        return 3 * noisy + states.view(-1, 1, 1, 1)

    def loss(self, latents, states, rng):
        return (self.predicted_noise(latents + 2, torch.tensor([7]), states) - 2).square().mean(dim=(1, 2, 3))


def gradient(objective, photos: torch.Tensor) -> list[float]:
    moving = photos.clone().requires_grad_(True)
    return torch.autograd.grad(objective(moving, 0), moving)[0].flatten().tolist()


def test_photoguard_leads_latents_to_zero() -> None:
    objective = towards_zero(Linear())
    assert objective(pixels(0.3, 0.4, 0.0, 0.6, 0.8, 0.0), 0).item() == pytest.approx(-3)  # -(2 * 0.5 + 2 * 1)
    assert gradient(objective, pixels(0.3, 0.4, 0.0)) == pytest.approx([-1.2, -1.6, 0])


def test_photoguard_steps_grow_shorter_from_a_random_start() -> None:
    photos = pixels(0.4, 0.5, 0.6)
    method = PhotoGuardEncoder(PhotoGuardEncoderConfig(budget_levels=10.0, steps=2, step_levels=1.0))
    found = method.perturb(subject(photos), Linear(), 0.1, generator())
    start = random_start(photos, 0.1, generator())
    # Steps of 0.01 and 0.01 - 0.0099 / 2, in the direction of zero, in the ball.
    assert torch.allclose(found, (start - 0.01 - 0.00505).maximum(photos - 0.1))


def test_photoguard_leads_what_the_model_paints_to_grey() -> None:
    """Two steps of DDIM by hand, with eta 1, for a network that predicts a quarter of what it sees."""
    model = Linear()
    model.encode = lambda photos, rng: photos
    model.noise = lambda shape, rng: torch.full(tuple(shape), 0.5)
    model.add_noise = model.schedule.add_noise
    model.predict = lambda noisy, timesteps, states: model.times.append(timesteps.tolist()) or noisy / 4
    model.decode = lambda latents, clamp: latents if not clamp else None
    found = towards_grey(model, 2, 0.5, generator())(pixels(0.2, 0.2, 0.2, 0.9, 0.9, 0.9), 0).item()
    assert model.times == [[251, 251], [1, 1]] and model.prompts == [""]  # 4 steps of a schedule of 1000, the last two

    kept = model.schedule.alphas_cumprod.double().tolist()

    def step(z: float, now: float, then: float) -> float:
        sigma = math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        clean = (z - math.sqrt(1 - now) * z / 4) / math.sqrt(now)
        return math.sqrt(then) * clean + math.sqrt(1 - then - sigma**2) * z / 4 + sigma * 0.5

    def painted(x: float) -> float:
        z = math.sqrt(kept[251]) * x + math.sqrt(1 - kept[251]) * 0.5
        return step(step(z, kept[251], kept[1]), kept[1], 1.0)

    assert found == pytest.approx(-sum(abs(painted(x) - 0.5) * math.sqrt(3) for x in (0.2, 0.9)), rel=1e-5)


def test_advdm_raises_the_denoising_loss_of_its_own_prompt() -> None:
    model = Linear()
    found = AdvDM().objective(subject(pixels(0.5, 0.5, 0.5)), model, generator())(pixels(0.5, 0.5, 0.5, 0.0, 0.0, 0.0), 0)
    assert found.item() == (64 + 25) / 2  # (3 (2 x + 2) + 1 - 2)^2
    assert model.prompts == ["a photo"]


def test_mist_adds_the_way_to_a_target(monkeypatch) -> None:
    monkeypatch.setattr(mist, "bars", lambda height, width: torch.ones(1, 3, height, width))
    photos = pixels(0.5, 0.5, 0.5, 0.0, 0.0, 0.0)
    found = Mist(MistConfig(rate=10.0)).objective(subject(photos), Linear(), generator())(photos, 0).item()
    assert found == 64 + 25 - (3 * 1 + 3 * 4) / 10  # latents 1 and 0, target 2


def test_the_target_is_a_band_of_bars() -> None:
    found = mist.bars(20, 40)
    assert found.shape == (1, 3, 20, 40) and (found[0, 0] == found[0, 2]).all()
    assert "".join(str(int(value)) for value in found[0, 0, 10]) == "000000" + "1100" * 7 + "000000"
    assert found.amax(dim=(0, 1, 3)).tolist() == [0] * 8 + [1] * 4 + [0] * 8


@pytest.mark.parametrize(("direction", "way"), [("minus", -1), ("plus", 1)])
def test_sds_takes_the_score_for_the_gradient_of_the_latent(direction: str, way: int, monkeypatch) -> None:
    monkeypatch.setattr(sds, "bars", lambda height, width: torch.ones(1, 3, height, width))
    photos, model = pixels(0.5, 0.0, -1.0), Linear()
    plain = SDS(SDSConfig(direction=direction)).objective(subject(photos), model, generator())
    # Latents 1, 0, -2; score 3 (z + 2) + 1 - 2 = 8, 5, -1; latent by pixel: 2; a mean over three.
    assert gradient(plain, photos) == pytest.approx([way * score * 2 / 3 for score in (8, 5, -1)])
    targeted = SDS(SDSConfig(direction=direction, targeted=True)).objective(subject(photos), model, generator())
    # Distances from the target's 2: -1, -2, -4.
    by_hand = [5 * way * score * 2 / 3 - 2 * away * 2 / 3 for score, away in ((8, -1), (5, -2), (-1, -4))]
    assert gradient(targeted, photos) == pytest.approx(by_hand)
    assert set(model.prompts) == {"a photo"} and model.times == [[7], [7]]


def test_pid_counts_mean_and_log_variance() -> None:
    objective = PID().objective(subject(pixels(0.5, 0.5, 0.5)), Linear(), generator())
    assert objective(pixels(0.7, 0.7, 0.7), 0).item() == pytest.approx(0.4**2 + 0.6**2)


def test_diffusionguard_raises_the_norm_of_the_first_prediction() -> None:
    model = Linear()
    objective = DiffusionGuard().objective(subject(pixels(0.5, 0.5, 0.5)), model, generator())
    assert objective(pixels(0.5, 0.5, 0.5, 0.0, 0.0, 0.0), 0).item() == pytest.approx((10 + 7) * math.sqrt(3))  # 3 (2 x + 2) + 1
    assert model.times == [[751, 751]] and model.prompts == [""]


def test_editshield_averages_over_transformations_and_minds_visibility(monkeypatch) -> None:
    monkeypatch.setattr(editshield, "TRANSFORMATIONS", (lambda photos: photos, lambda photos: 2 * photos))
    objective = EditShield().objective(subject(pixels(0.5, 0.5, 0.5)), Linear(), generator())
    # Latents 1.4 and 2.8, origin 1; pixels 0.2 off.
    assert objective(pixels(0.7, 0.7, 0.7), 0).item() == pytest.approx((0.4**2 + 1.8**2) / 2 - 0.1 * 0.2**2)


def test_transformations_of_editshield() -> None:
    photos = torch.rand(2, 3, 12, 12, generator=generator())
    flat = torch.full((1, 3, 12, 12), 0.3)
    assert torch.allclose(editshield.crop_centre(flat), flat) and torch.allclose(editshield.blur(flat), flat)
    assert torch.allclose(editshield.crop_centre(photos, 1.0), photos)
    assert torch.allclose(editshield.turn(photos, 90.0), photos.rot90(1, (2, 3)), atol=1e-5)
    wide = photos[:, :, :6]
    assert torch.allclose(editshield.turn(wide, 180.0), wide.flip(2, 3), atol=1e-5)
    point = torch.zeros(1, 3, 9, 9)
    point[..., 4, 4] = 1.0
    near = [math.exp(-(distance**2) / 4.5) for distance in (0, 1, 2)]
    assert editshield.blur(point)[0, 1, 4, 6].item() == pytest.approx(near[0] * near[2] / (near[0] + 2 * near[1] + 2 * near[2]) ** 2)


@pytest.mark.parametrize("name", METHODS)
def test_on_a_base_model(name: str, tiny_base) -> None:
    base = DiffusionModel.load(tiny_base)
    before = {key: weight.clone() for key, weight in base.state().items()}
    photos = torch.randint(0, 256, (2, 3, 32, 32), generator=generator(1)).float() / 255
    method = registry.configure(name, registry.load("methods", name), {"steps": 2, "step_levels": 4.0})
    state = torch.random.get_rng_state()

    def released(seed: int) -> torch.Tensor:
        found = method.protect([subject(photos)], base, Budget(6.0), generator(seed)).photos["ada"]
        return pictures.to_levels(found).int() - pictures.to_levels(photos).int()

    change = released(3)
    assert 0 < change.abs().amax() <= 6 and (change.flatten(1) != 0).any(1).all()
    assert torch.equal(released(3), change) and not torch.equal(released(4), change)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert base.state().keys() == before.keys() and all(torch.equal(weight, before[key]) for key, weight in base.state().items())
    assert not any(weight.requires_grad for part in (base.unet, base.text_encoder, base.vae) for weight in part.parameters())
