"""The denoiser and its text encoder, trained together on cached latents and drawn captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import LENGTH, caption
from .dataset import Pictures
from .draw import EMPTY
from .training import train

STEPS, BATCH, RATE, SEED = 4000, 32, 8e-4, 23
TEXT_WIDTH = 128
NO_CAPTION = 0.1  # share of empty prompts, for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting (Hang et al., ICCV 2023)


class Denoiser(nn.Module):
    """U-Net and text encoder as one module, so that they share an optimizer."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                projection_dim=TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # Words start far apart: rare identifiers are seldom trained and keep much of what they start with.
        nn.init.normal_(self.text_encoder.get_input_embeddings().weight, std=0.1)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 192),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        )

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted noise (N, 4, 16, 16) for noisy latents, timesteps (N,) and token ids (N, LENGTH)."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timesteps, states, return_dict=False)[0]


def scheduler() -> DDPMScheduler:
    """Stable Diffusion's training schedule."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def fit(latents: torch.Tensor, pictures: Pictures, tokenizer: CLIPTokenizer, folder: Path, steps: int = STEPS) -> Denoiser:
    """Train on scaled latents (N, 4, 16, 16) of the pictures."""
    model = Denoiser(tokenizer)
    noise_schedule = scheduler()
    signal = noise_schedule.alphas_cumprod
    weights = (SNR_CAP / (signal / (1 - signal))).clamp(max=1.0)
    # People are half of the pictures; empty scenes are simple and few.
    likelihood = torch.tensor([0.5 if fact["class"] == EMPTY else 1.0 for fact in pictures.facts])

    def forward(noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(noisy, timesteps, tokens)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        words = np.random.default_rng([SEED, step])
        rows = torch.multinomial(likelihood, BATCH, replacement=True, generator=generator)
        texts = [caption(pictures.facts[row], words) if words.uniform() >= NO_CAPTION else "" for row in rows.tolist()]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, len(signal), (BATCH,), generator=generator)
        predicted = forward(noise_schedule.add_noise(clean, noise, timesteps), timesteps, tokens).float()
        return ((predicted - noise).square().mean(dim=(1, 2, 3)) * weights[timesteps]).mean()

    train("denoiser", model, loss, folder, steps=steps, rate=RATE, seed=SEED, average=0.999, weight_decay=0.01)
    return model
