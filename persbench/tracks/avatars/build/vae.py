"""The autoencoder: 64 x 64 pictures to 16 x 16 latents of 4 channels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .dataset import Pictures
from .training import train

SEED = 11
STEPS, BATCH, RATE = (3500, 2200), 8, 1e-3  # two cosine cycles; the second weighs colours of areas
KL_WEIGHT, EDGE_WEIGHT, COLOUR_WEIGHT = 1e-6, 0.5, 4.0


def new() -> AutoencoderKL:
    """An untrained autoencoder of the track's architecture."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    ).to(memory_format=torch.channels_last)
    # Start with little posterior noise: at unit variance it drowns the code, and the decoder learns to ignore it.
    with torch.no_grad():
        vae.quant_conv.bias[4:].fill_(-6.0)
    return vae


def to_signed(pixels: torch.Tensor) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) float in [-1, 1]."""
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def reconstruction_error(decoded: torch.Tensor, signed: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of the differences between neighbours, which blur gets wrong."""
    error = (decoded - signed).abs().mean() + 2 * F.mse_loss(decoded, signed)
    for axis in (-1, -2):
        error = error + EDGE_WEIGHT * (decoded.diff(dim=axis) - signed.diff(dim=axis)).abs().mean()
    return error


def colour_error(decoded: torch.Tensor, signed: torch.Tensor) -> torch.Tensor:
    """Error of the mean colours of 4 x 4 areas, which edges hide from the other terms."""
    got, wanted = F.avg_pool2d(decoded, 4), F.avg_pool2d(signed, 4)
    return (got - wanted).abs().mean() + 2 * F.mse_loss(got, wanted)


def fit(pictures: Pictures, folder: Path, steps: tuple[int, int] = STEPS) -> AutoencoderKL:
    """Train encoder and decoder; sets `scaling_factor` so that latents have unit variance."""
    vae = new()
    pixels = torch.from_numpy(pictures.pixels)

    def forward(signed: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = vae.quant_conv(vae.encoder(signed)).chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            decoded = vae.decoder(vae.post_quant_conv(mean + torch.exp(0.5 * log_variance) * noise))
        mean, log_variance = mean.float(), log_variance.float()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        return decoded.float(), divergence

    def loss(step: int, generator: torch.Generator, colour_weight: float = 0.0) -> torch.Tensor:
        rows = torch.randint(len(pixels), (BATCH,), generator=generator)
        signed = to_signed(pixels[rows])
        decoded, divergence = forward(signed, torch.randn(BATCH, 4, 16, 16, generator=generator))
        error = reconstruction_error(decoded, signed) + KL_WEIGHT * divergence
        return error + colour_weight * colour_error(decoded, signed) if colour_weight else error

    train("vae-edges", vae, loss, folder, steps=steps[0], rate=RATE, seed=SEED, average=0.995)
    coloured = partial(loss, colour_weight=COLOUR_WEIGHT)
    train("vae-colours", vae, coloured, folder, steps=steps[1], rate=RATE, seed=SEED + 2, average=0.995)
    vae.register_to_config(scaling_factor=round(1 / encode(vae, pictures, limit=4000).std().item(), 5))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Pictures, limit: int | None = None, batch: int = 100) -> torch.Tensor:
    """Unscaled latent means (N, 4, 16, 16) of the pictures."""
    pixels = torch.from_numpy(pictures.pixels[:: max(1, len(pictures.pixels) // limit)] if limit else pictures.pixels)
    return torch.cat([vae.encode(to_signed(part)).latent_dist.mean for part in pixels.split(batch)])
