from __future__ import annotations

import pytest
import torch

from persbench.diffusion import DiffusionModel, finetune
from persbench.diffusion.model import folder_digest
from persbench.errors import PersbenchError


def test_loads_with_diffusers_and_keeps_its_prediction_type(tiny_base) -> None:
    from diffusers import StableDiffusionPipeline

    model = DiffusionModel.load(tiny_base)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    assert model.schedule.config.prediction_type == pipeline.scheduler.config.prediction_type
    assert model.picture_size == 32


def test_target_is_noise_or_velocity(tiny_base) -> None:
    model = DiffusionModel.load(tiny_base)
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 16, 16, generator=rng), torch.randn(2, 4, 16, 16, generator=rng)
    timesteps = torch.tensor([10, 900])
    signal = model.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    by_hand = noise if model.schedule.config.prediction_type == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents
    assert torch.allclose(model.target(latents, noise, timesteps), by_hand, atol=1e-6)
    by_hand = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    assert torch.allclose(model.add_noise(latents, noise, timesteps), by_hand, atol=1e-6)


def test_timesteps_stay_between_the_shares_asked_for(tiny_epsilon) -> None:
    found = DiffusionModel.load(tiny_epsilon).timesteps(500, torch.Generator().manual_seed(0), 0.3, 0.95)
    assert (int(found.min()) >= 300, int(found.max()) < 950, len(found.unique()) > 200) == (True, True, True)


def test_the_noise_between_two_latents_leads_from_one_to_the_noisy_other(tiny_epsilon) -> None:
    model, rng = DiffusionModel.load(tiny_epsilon), torch.Generator().manual_seed(0)
    bare, marked = (model.noise((2, 4, 8, 8), rng) for _ in range(2))
    timesteps = torch.tensor([300, 700])
    noisy = model.add_noise(bare, model.noise(bare.shape, rng), timesteps)
    assert torch.allclose(model.add_noise(marked, model.noise_between(marked, noisy, timesteps), timesteps), noisy, atol=1e-5)


def test_a_decaying_rate_falls_along_a_line() -> None:
    """AdamW's first steps under a constant gradient move by the rate itself."""
    weight = torch.nn.Parameter(torch.zeros(1))
    seen = []
    finetune(
        [weight], lambda step: seen.append(weight.item()) or weight.sum(), steps=4, rate=0.4, weight_decay=0, decay=True, description=""
    )
    moved = [before - after for before, after in zip(seen, [*seen[1:], weight.item()], strict=True)]
    assert moved == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=1e-4)


def test_sampling_is_the_pipeline_of_diffusers(tiny_base) -> None:
    """The same start noise through StableDiffusionPipeline with the same solver gives the same pictures."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    model = DiffusionModel.load(tiny_base)
    ours = model.sample(["a photo of a person"], torch.Generator().manual_seed(5), inference_steps=4, guidance=3.0)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    theirs = pipeline("a photo of a person", latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
    assert torch.allclose(ours, theirs, atol=2e-4)


def test_difference_holds_what_changed_and_rebuilds_it(tiny_epsilon) -> None:
    base = DiffusionModel.load(tiny_epsilon)
    changed = base.clone("unet")
    with torch.no_grad():
        changed.unet.conv_in.weight.add_(1.0)
    difference = changed.difference(base)
    assert list(difference) == ["unet.conv_in.weight"]
    again = base.with_weights(difference)
    assert torch.equal(again.unet.conv_in.weight, changed.unet.conv_in.weight)
    assert not torch.equal(base.unet.conv_in.weight, changed.unet.conv_in.weight)
    assert again.difference(base).keys() == difference.keys()


def test_identifiers_must_survive_the_tokenizer(tiny_epsilon) -> None:
    model = DiffusionModel.load(tiny_epsilon)
    assert len(model.identifier_tokens("sks", "a photo of sks person")) == 1
    assert len(model.identifier_tokens("t@t", "a photo of t@t person")) == 3
    with pytest.raises(PersbenchError, match="does not survive"):
        model.identifier_tokens(" ", "a photo of   person")
    with pytest.raises(PersbenchError, match="does not survive"):
        model.identifier_tokens("sks", "a photo of a person")
    with pytest.raises(PersbenchError, match="does not survive"):
        model.identifier_tokens("sks", "a photo of a person " * 10 + "sks")  # cut off at the tokenizer's length


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_finetune_lowers_the_loss_and_leaves_gradients_off(tiny_epsilon, precision) -> None:
    model = DiffusionModel.load(tiny_epsilon, precision).clone("unet")
    model.unet.enable_gradient_checkpointing()
    rng = torch.Generator().manual_seed(0)
    latents, states = torch.randn(4, 4, 16, 16, generator=rng), model.embed(["a photo of a person"]).expand(4, -1, -1)
    seen: list[float] = []

    def loss(step: int) -> torch.Tensor:
        value = model.loss(latents, states, torch.Generator().manual_seed(1)).mean()
        seen.append(value.item())
        return value

    finetune(model.unet.parameters(), loss, steps=8, rate=1e-2, description="test")
    assert seen[-1] < seen[0]
    assert not any(p.requires_grad or p.grad is not None for p in model.unet.parameters())


def test_a_loss_that_is_not_finite_stops_the_training(tiny_epsilon) -> None:
    model = DiffusionModel.load(tiny_epsilon).clone("unet")
    with pytest.raises(PersbenchError, match="lower the rate"):
        finetune(model.unet.parameters(), lambda step: torch.tensor(float("nan"), requires_grad=True), steps=1, rate=1, description="t")


def test_the_digest_of_a_folder_changes_with_its_weights(tiny_epsilon, tmp_path) -> None:
    import shutil

    copy = shutil.copytree(tiny_epsilon, tmp_path / "copy")
    assert folder_digest(copy) == folder_digest(tiny_epsilon)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert folder_digest(copy) != folder_digest(tiny_epsilon)


def test_predicted_noise_of_a_network_that_is_right_is_the_noise(tiny_base, monkeypatch) -> None:
    model, rng = DiffusionModel.load(tiny_base), torch.Generator().manual_seed(0)
    latents, noise = (model.noise((2, 4, 8, 8), rng) for _ in range(2))
    timesteps = torch.tensor([300, 700])
    monkeypatch.setattr(model, "predict", lambda noisy, timesteps, states: model.target(latents, noise, timesteps))
    noisy = model.add_noise(latents, noise, timesteps)
    assert torch.allclose(model.predicted_noise(noisy, timesteps, torch.zeros(2, 1, 1)), noise, atol=1e-5)


def test_posterior_and_decoding_beyond_the_range(tiny_epsilon) -> None:
    model, rng = DiffusionModel.load(tiny_epsilon), torch.Generator().manual_seed(0)
    photos = torch.rand(1, 3, 32, 32, generator=rng)
    found, (mean, log_variance) = model.vae.encode(photos * 2 - 1).latent_dist, model.posterior(photos)
    assert torch.equal(mean, found.mean) and torch.equal(log_variance, found.logvar)
    assert torch.equal(model.encode(photos), found.mean * model.vae.config.scaling_factor)
    free = model.decode(100 * mean, clamp=False)
    assert free.min() < 0 and torch.equal(free.clamp(0, 1), model.decode(100 * mean))
