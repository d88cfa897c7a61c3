"""Disrupting diffusion: attention to the identifier is erased on top of alternating surrogate and perturbation learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from persbench.contracts import Card, Subject, Words
from persbench.diffusion import DiffusionModel

from .aspl import alternate
from .perturbation import Perturbation, Surrogate, ascend
from .simac import TimestepSearchConfig, greedy_timesteps, random_timesteps


@dataclass(frozen=True)
class DisDiffConfig(TimestepSearchConfig):
    """DisDiff's `disdiff.sh`: ASPL's budget, steps and rounds, attention weight 0.1, and SimAC's search of timesteps."""

    attention_weight: float = 0.1
    search: bool = True  # timesteps as SimAC finds them; otherwise all


class DisDiff(Perturbation):
    """ASPL that also erases the identifier from the cross-attention maps, with steps that shrink towards noisy timesteps.

        L = ||eps_theta'(z_t(x'), t, "V* class") - eps||^2 + weight * (1 - sum A_V*^2 / sum_w A_w^2)^2
        x' <- project(x' + step * (1 + cos(pi t / (T - 1))) / 2 * sign(grad_x' L))

    where A is the mean over heads, photos and cross-attention layers at a quarter of the latent's side, and, over the prompt's tokens, a
    softmax of 100 times that. Source: DisDiff and its official code. Differences from that code: the identifier's tokens are looked up
    (official: the fourth word), as are the prompt's (official: as many tokens as words); where no layer works at a quarter of the
    latent's side the nearest size is taken; and those of ASPL. As there, the surrogate keeps what it learns from the clean photos.
    """

    Config: ClassVar[type] = DisDiffConfig
    card: ClassVar[Card] = Card(
        "Disrupting diffusion (DisDiff)",
        paper="Disrupting Diffusion: Token-Level Attention Erasure Attack against Diffusion-based Customization (Liu et al.)",
        venue="ACM MM",
        year=2024,
        repository="riolys/DisDiff",
        controls="the published photos",
        knows="the base model, the personalizer's loss, the identifier and the class word",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: DisDiffConfig = self.config
        size, length = self.step(radius), base.schedule.config.num_train_timesteps
        surrogate = Surrogate.dreambooth(subject.words, base, config, rng)
        kept = torch.ones(len(subject.photos), length, dtype=torch.bool)
        if config.search:
            kept = greedy_timesteps(base, surrogate.states(), subject.photos, config, radius, size, rng)
        prompt, identifier = token_positions(base, subject.words)

        def attack(surrogate: Surrogate, photos: torch.Tensor) -> torch.Tensor:
            model, states = surrogate.model, surrogate.states()
            timesteps = torch.zeros(len(photos))

            def objective(photos: torch.Tensor, number: int) -> torch.Tensor:
                nonlocal timesteps
                timesteps = random_timesteps(kept, rng).to(photos.device)
                latents = model.encode(photos, rng)
                with attention_maps(model.unet) as maps:
                    denoising = model.loss(latents, states.expand(len(latents), -1, -1), rng, timesteps).mean()
                return denoising + config.attention_weight * erasure(maps, latents.shape[-1], prompt, identifier)

            return ascend(
                objective,
                photos,
                around=subject.photos,
                radius=radius,
                step=lambda number: size * merit(timesteps, length).view(-1, 1, 1, 1),
                steps=config.steps,
            )

        return alternate([surrogate], subject.photos, config, attack, rng, "disdiff", forget_clean=False)


def merit(timesteps: torch.Tensor, length: int) -> torch.Tensor:
    """The share of the step that a photo takes at its timestep, (N,): 1 at the first, 0 at the last."""
    return (1 + torch.cos(math.pi * timesteps / (length - 1))) / 2


def token_positions(model: DiffusionModel, words: Words) -> tuple[list[int], list[int]]:
    """Positions, among the tokens of the instance prompt, of its words without start and end, and of the identifier."""
    wanted = model.identifier_tokens(words.identifier, words.instance_prompt)
    ids = model.tokenizer(words.instance_prompt).input_ids
    first = next(i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted)
    return list(range(1, len(ids) - 1)), list(range(first, first + len(wanted)))


def erasure(maps: list[torch.Tensor], side: int, prompt: list[int], identifier: list[int]) -> torch.Tensor:
    """(1 - share of the identifier in the attention's energy)^2, from maps (N * heads, h * w, L) of latents with `side` cells a side."""
    nearest = min({found.shape[1] for found in maps}, key=lambda cells: abs(math.log(math.sqrt(cells) / (side / 4))))
    mean = torch.cat([found for found in maps if found.shape[1] == nearest]).mean(dim=0)
    energy = (100 * mean[:, prompt]).softmax(dim=-1).square().sum(dim=0)
    return (1 - energy[[prompt.index(token) for token in identifier]].sum() / energy.sum()).square()


@contextmanager
def attention_maps(unet: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the cross-attention maps, (N * heads, h * w, L) each, differentiable."""
    found: list[torch.Tensor] = []
    hooks = []

    def watch(attention: Any) -> None:
        queries: list[torch.Tensor] = []

        def key(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            query = attention.head_to_batch_dim(queries.pop()).float()
            scores = query @ attention.head_to_batch_dim(output).float().transpose(1, 2) * attention.scale
            found.append(scores.softmax(dim=-1))

        hooks.append(attention.to_q.register_forward_hook(lambda module, inputs, output: queries.append(output)))
        hooks.append(attention.to_k.register_forward_hook(key))

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            watch(module)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
