"""Countermeasures: what all of them keep, and for each the thing that it is for."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from persbench.attacks.countermeasures.adverse_cleaner import AdverseCleaner, bilateral, guided
from persbench.attacks.countermeasures.bit_depth import BitDepth, BitDepthConfig
from persbench.attacks.countermeasures.blur import Blur, BlurConfig
from persbench.attacks.countermeasures.crop_resize import CropResize, CropResizeConfig
from persbench.attacks.countermeasures.diffpure import DiffPure, DiffPureConfig, purified
from persbench.attacks.countermeasures.grid_pure import GridPure, GridPureConfig, pieces
from persbench.attacks.countermeasures.impress import Impress, ImpressConfig
from persbench.attacks.countermeasures.jpeg import Jpeg, JpegConfig
from persbench.attacks.countermeasures.median import Median
from persbench.attacks.countermeasures.mixed import Mixed, MixedConfig
from persbench.attacks.countermeasures.noise import Noise, NoiseConfig
from persbench.attacks.countermeasures.resize import Resize, ResizeConfig
from persbench.attacks.countermeasures.tv import total_variation_denoised
from persbench.attacks.countermeasures.vae_roundtrip import VaeRoundtrip
from persbench.attacks.countermeasures.webp import WebP, WebPConfig
from PIL import Image

from persbench import registry
from persbench.errors import PersbenchError

SHORT = {"diffpure": {"timestep": 3}, "grid-pure": {"timestep": 2, "iterations": 2}, "impress": {"iterations": 2}}
RANDOM = {"crop-resize", "diffpure", "grid-pure", "impress", "noise"}

# cv2.bilateralFilter(picture, 5, 8, 8), and cv2.ximgproc.guidedFilter(picture, that, 2, 16), OpenCV 5.0: row 3 of each channel.
BILATERAL = [
    [6.868, 9.874, 11.740, 95.825, 99.130, 100.152],
    [5.992, 5.490, 5.032, 3.905, 2.772, 10.524],
    [1.349, 2.497, 4.599, 1.785, 3.135, 5.612],
]
GUIDED = [
    [6.027, 9.626, 14.325, 94.026, 98.456, 101.393],
    [6.233, 5.902, 5.716, 4.936, 4.801, 7.671],
    [1.191, 3.438, 5.770, 1.152, 3.594, 6.074],
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(side: int = 32, count: int = 3) -> torch.Tensor:
    """8-bit noise, as photos from disk have 8 bits."""
    return torch.randint(0, 256, (count, 3, side, side), generator=rng(5)).float() / 255


PHOTOS = pictures()


def plain(plugin, photos: torch.Tensor) -> torch.Tensor:
    """The photos after a countermeasure that needs no adversary."""
    return plugin.apply(photos, None, rng())


@pytest.mark.parametrize("name", registry.names("countermeasures"))
def test_all_keep_shape_and_range_and_draw_from_their_generator_only(name, adversary) -> None:
    plugin = registry.configure(name, registry.load("countermeasures", name), SHORT.get(name, {}))
    given = PHOTOS.clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = plugin.apply(given, adversary, rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given, PHOTOS)
    assert first.shape == PHOTOS.shape and first.dtype == torch.float32 and not first.requires_grad
    assert first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, PHOTOS)
    assert torch.equal(plugin.apply(given, adversary, rng(1)), first)
    assert torch.equal(plugin.apply(given, adversary, rng(2)), first) == (name not in RANDOM)


@pytest.mark.parametrize(("plugin", "kind"), [(Jpeg(JpegConfig(quality=60)), "JPEG"), (WebP(WebPConfig(quality=60)), "WEBP")])
def test_compression_is_that_of_a_file_on_disk(plugin, kind) -> None:
    levels = (PHOTOS[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind, quality=60)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert torch.equal(plain(plugin, PHOTOS)[1], expected)


def test_resize_by_hand() -> None:
    photos = torch.zeros(1, 3, 4, 4)
    photos[..., 0, 0] = photos[..., 1, 1] = 1.0
    halved = plain(Resize(ResizeConfig(scale=0.5, interpolation="nearest")), photos)
    assert all(len(block.unique()) == 1 for row in halved[0, 0].split(2) for block in row.split(2, dim=1))  # 2 x 2 blocks of one value
    flat = torch.full((1, 3, 8, 6), 51 / 255)
    assert torch.equal(plain(Resize(), flat), flat)


def test_crop_resize_shows_a_window() -> None:
    ramp = (torch.arange(40) * 6 / 255).expand(8, 3, 40, 40)  # a step of 6 levels a pixel, rightwards
    cropped = plain(CropResize(CropResizeConfig(share=0.25)), ramp)
    assert torch.allclose(cropped[..., 10:30].diff(dim=-1).mean() * 255, torch.tensor(6 * 0.75), atol=0.1)
    assert len({picture[0, 0, 0].item() for picture in cropped}) > 1  # each photo has a window of its own
    assert torch.equal(plain(CropResize(CropResizeConfig(share=0)), PHOTOS), PHOTOS)


def test_blur_of_an_impulse_is_the_gaussian_kernel() -> None:
    photos = torch.zeros(1, 3, 9, 9)
    photos[..., 4, 4] = 1
    kernel = torch.exp(-torch.arange(-2.0, 3).square() / (2 * 1.1**2))  # sigma of a kernel of 5
    kernel /= kernel.sum()
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = kernel[:, None] * kernel
    assert torch.allclose(plain(Blur(), photos), expected.expand(1, 3, 9, 9), atol=1e-6)
    with pytest.raises(PersbenchError, match="odd"):
        plain(Blur(BlurConfig(kernel=4)), photos)


def test_median_removes_impulses_and_keeps_edges() -> None:
    clean = torch.zeros(1, 3, 8, 8)
    clean[..., 4:] = 0.6
    spoiled = clean.clone()
    spoiled[..., 2, 2], spoiled[0, 1, 6, 6] = 1.0, 0.0
    assert torch.equal(plain(Median(), spoiled), clean)


def test_noise_has_the_deviation() -> None:
    change = plain(Noise(NoiseConfig(deviation=0.05)), torch.full((1, 3, 64, 64), 0.5)) - 0.5
    assert change.std().item() == pytest.approx(0.05, rel=0.05)
    assert change.mean().item() == pytest.approx(0, abs=0.002)


def test_bit_depth_has_its_levels() -> None:
    ramp = (torch.arange(256) / 255).expand(1, 3, 1, 256)
    found = plain(BitDepth(BitDepthConfig(bits=3)), ramp)
    assert torch.allclose(found.unique(), torch.arange(8) / 7)
    assert (found - ramp).abs().max() <= 0.5 / 7 + 1e-6
    assert torch.allclose(plain(BitDepth(BitDepthConfig(bits=8)), ramp), ramp)


def test_total_variation_solves_its_problem() -> None:
    # A step of height 1 between two halves of 4 columns: each half moves by weight / 4 towards the other.
    step = torch.zeros(1, 1, 6, 8)
    step[..., 4:] = 1.0
    expected = torch.where(step > 0.5, 1 - 0.2 / 4, 0.2 / 4)
    assert torch.allclose(total_variation_denoised(step, weight=0.2, steps=3000), expected, atol=1e-3)
    found = total_variation_denoised(PHOTOS, weight=0.1, steps=100)
    assert torch.allclose(found.mean(dim=(2, 3)), PHOTOS.mean(dim=(2, 3)), atol=1e-5)
    variation = [pictures.diff(dim=2).abs().sum() + pictures.diff(dim=3).abs().sum() for pictures in (found, PHOTOS)]
    assert variation[0] < 0.7 * variation[1]


def test_bilateral_and_guided_filters_give_what_opencv_gives() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    picture = torch.stack([(7 * y + 5 * x) % 16 + 90 * (x > 2), (3 * y + 11 * x) % 13, (y * x) % 9 + 60 * (y > 3)])[None].double()
    smooth = bilateral(picture, 5, 8.0, 8.0)
    assert torch.allclose(smooth[0, :, 3], torch.tensor(BILATERAL).double(), atol=1e-3)
    assert torch.allclose(guided(picture, smooth, 2, 16.0)[0, :, 3], torch.tensor(GUIDED).double(), atol=1e-3)


def test_adverse_cleaner_smooths_perturbations_and_keeps_edges() -> None:
    clean = torch.full((1, 3, 24, 24), 0.2)
    clean[..., 12:] = 0.8
    perturbed = clean + (torch.randint(0, 2, clean.shape, generator=rng()) * 2 - 1) * 8 / 255
    cleaned = plain(AdverseCleaner(), perturbed)
    assert (cleaned - clean).square().mean() < 0.35 * (perturbed - clean).square().mean()
    assert (cleaned[..., 12].mean() - cleaned[..., 11].mean()).item() == pytest.approx(0.6, abs=0.03)


def test_vae_roundtrip_is_decoding_what_was_encoded(adversary) -> None:
    model = adversary.public
    found = VaeRoundtrip().apply(PHOTOS, adversary, rng())
    with torch.no_grad():
        expected = model.vae.decode(model.vae.encode(PHOTOS * 2 - 1).latent_dist.mean).sample
    assert torch.allclose(found, (expected / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_diffpure_at_zero_is_the_round_trip(adversary) -> None:
    round_trip = VaeRoundtrip().apply(PHOTOS, adversary, rng())
    assert torch.equal(DiffPure(DiffPureConfig(timestep=0)).apply(PHOTOS, adversary, rng()), round_trip)
    change = [(DiffPure(DiffPureConfig(timestep=t)).apply(PHOTOS, adversary, rng()) - round_trip).abs().mean() for t in (2, 20)]
    assert 0 < change[0] < change[1]


def test_purification_with_a_perfect_denoiser_gives_the_latents_back(adversary) -> None:
    # A denoiser that knows the clean latents: whatever the noise, the last ancestral step returns them.
    model, latents = adversary.public, torch.randn(2, 4, 8, 8, generator=rng())

    def predict(noisy, timesteps, states):
        return model.target(latents, model.noise_between(latents, noisy, timesteps), timesteps)

    perfect = model.clone()
    perfect.predict = predict
    assert torch.allclose(purified(perfect, latents, 50, rng()), latents, atol=1e-4)


def test_one_step_of_purification_by_hand(adversary) -> None:
    # From timestep 0 a DDPM step goes to the predicted clean latents, without noise.
    model, latents = adversary.public, torch.randn(2, 4, 8, 8, generator=rng())
    times = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        noisy = model.add_noise(latents, model.noise(latents.shape, rng(4)), times)
        predicted = model.predict(noisy, times, model.embed(["", ""]))
    signal = model.schedule.alphas_cumprod[0]
    if model.schedule.config.prediction_type == "epsilon":
        expected = (noisy - (1 - signal).sqrt() * predicted) / signal.sqrt()
    else:
        expected = signal.sqrt() * noisy - (1 - signal).sqrt() * predicted
    assert torch.allclose(purified(model, latents, 1, rng(4)), expected, atol=1e-5)


def test_grids_cover_everything_and_the_corners_twice() -> None:
    cut = pieces(16, 16, 8)
    count = torch.zeros(16, 16)
    for rows, columns in cut:
        assert rows.shape == (8, 1) and columns.shape == (8,)
        count[rows, columns] += 1
    assert len(cut) == 9 + 1
    assert count[0, 0] == count[-1, -1] == 2 and count[0, 8] == 2 and count[8, 8] == 4
    assert {len(columns) for _, columns in pieces(12, 18, 8)} == {8}
    assert len(pieces(8, 8, 8)) == 1 + 1  # pictures of one grid


def test_grid_pure_without_purification_changes_nothing_but_by_the_round_trip(adversary) -> None:
    found = GridPure(GridPureConfig(timestep=0, iterations=2)).apply(PHOTOS, adversary, rng())
    assert torch.allclose(found, VaeRoundtrip().apply(PHOTOS, adversary, rng()), atol=1e-5)
    kept = GridPure(GridPureConfig(timestep=5, iterations=1, gamma=1.0)).apply(PHOTOS, adversary, rng())
    assert torch.allclose(kept, found, atol=1e-5)


def test_impress_makes_photos_consistent_and_keeps_them_near(adversary) -> None:
    model = adversary.public

    def inconsistency(photos: torch.Tensor) -> float:
        with torch.no_grad():
            return (model.decode(model.encode(photos)) - photos).square().mean().item()

    found = Impress(ImpressConfig(iterations=15, alpha=0.0, noise=0.0, rate=0.05)).apply(PHOTOS, adversary, rng())
    assert inconsistency(found) < 0.8 * inconsistency(PHOTOS)
    # Photos are purified each on its own.
    alone = Impress(ImpressConfig(iterations=3, noise=0.0)).apply(PHOTOS[:1], adversary, rng())
    together = Impress(ImpressConfig(iterations=3, noise=0.0)).apply(PHOTOS, adversary, rng())
    assert torch.allclose(alone[0], together[0], atol=1e-4)
    near = Impress(ImpressConfig(iterations=15, alpha=1e3, epsilon=0.0, noise=0.0, rate=0.05)).apply(PHOTOS, adversary, rng())
    assert (near - PHOTOS).abs().mean() < 0.5 * (found - PHOTOS).abs().mean()


def test_mixed_has_its_share_of_clean_photos(adversary) -> None:
    photos = pictures(count=4)
    found = Mixed().apply(photos, adversary, rng())
    assert torch.equal(found[:2], adversary.clean_photos) and torch.equal(found[2:], photos[2:])
    assert torch.equal(Mixed(MixedConfig(fraction=0)).apply(photos, adversary, rng()), photos)
    with pytest.raises(PersbenchError, match="needs 4 clean photos and the adversary has 2"):
        Mixed(MixedConfig(fraction=1)).apply(photos, adversary, rng())
    none = replace(adversary, clean_photos=adversary.clean_photos[:0])
    with pytest.raises(PersbenchError, match="has 0"):
        Mixed().apply(photos, none, rng())


def test_options_out_of_range_are_named() -> None:
    for name, options in [("jpeg", {"quality": 0}), ("mixed", {"fraction": 1.5}), ("bit-depth", {"bits": 9}), ("resize", {"scale": 0})]:
        with pytest.raises(PersbenchError, match=f"option {next(iter(options))} of {name}"):
            registry.configure(name, registry.load("countermeasures", name), options)
