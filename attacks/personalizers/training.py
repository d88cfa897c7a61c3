"""What the personalizers that fine-tune share: pictures as latents, the loss with prior preservation, the loop, and tokens in training.

As in the scripts of diffusers, AdamW at a constant rate minimises the denoising loss at uniform timesteps. Unlike there, latents are the
means of the VAE's posterior, computed once, and photos are not flipped or cropped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from persbench.contracts import Adversary, Personalizer, Words
from persbench.diffusion import DiffusionModel, finetune


@dataclass(frozen=True)
class FineTuningConfig:
    """What every fine-tuning has. `batch`: photos a step, and as many pictures of the class where they take part."""

    rate: float
    steps: int
    batch: int
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class PriorPreservationConfig(FineTuningConfig):
    """A fine-tuning with prior preservation (Ruiz et al., CVPR 2023, eq. 2)."""

    prior_weight: float = 1.0  # of the loss on the public model's pictures of the class; 0: none


@dataclass(frozen=True)
class Adaptation:
    """The model in training, what of it is trained, and what turns that into plain weights in the end."""

    model: DiffusionModel
    parameters: list[nn.Parameter]
    merge: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Examples:
    """Latents (N, C, h, w) to be learned under a prompt, and the weight of their mean loss."""

    latents: torch.Tensor
    prompt: str
    weight: float = 1.0


class FineTuning(Personalizer):
    """Photos under the instance prompt; the class pictures under the class prompt where the configuration has prior preservation."""

    @abstractmethod
    def adapt(self, words: Words, model: DiffusionModel, rng: torch.Generator) -> Adaptation:
        """A copy of `model` (of each part that changes) and what of it is to be trained."""

    def personalize(
        self, photos: torch.Tensor, words: Words, model: DiffusionModel, adversary: Adversary, rng: torch.Generator
    ) -> DiffusionModel:
        config: FineTuningConfig = self.config
        adaptation = self.adapt(words, model, rng)
        tuned = adaptation.model
        examples = [Examples(encode(photos, model), words.instance_prompt)]
        if isinstance(config, PriorPreservationConfig) and config.prior_weight:
            pictures = encode(adversary.class_pictures(words.class_noun), model)
            examples.append(Examples(pictures, words.class_prompt, config.prior_weight))
        prompts = [each.prompt for each in examples]
        with torch.no_grad():
            fixed = model.embed(prompts)

        def loss(step: int) -> torch.Tensor:
            states = fixed if tuned.text_encoder is model.text_encoder else tuned.embed(prompts)
            return denoising_loss(tuned, examples, states, config.batch, rng)

        if config.gradient_checkpointing:
            tuned.unet.enable_gradient_checkpointing()
        try:
            finetune(
                adaptation.parameters,
                loss,
                steps=config.steps,
                rate=config.rate,
                description=self.card.title,
                half=model.precision == "fp16",
            )
        finally:
            if config.gradient_checkpointing:  # the denoiser may be the caller's
                tuned.unet.disable_gradient_checkpointing()
        adaptation.merge()
        return tuned


@torch.no_grad()
def encode(pictures: torch.Tensor, model: DiffusionModel) -> torch.Tensor:
    """Latents (N, C, h, w) of pictures (N, 3, H, W), a few at a time."""
    return torch.cat([model.encode(part) for part in pictures.split(16)])


def denoising_loss(
    model: DiffusionModel, examples: Sequence[Examples], states: torch.Tensor, batch: int, rng: torch.Generator
) -> torch.Tensor:
    """Sum over examples of weight times mean denoising loss, a scalar; `states` (K, L, D) are those of the K prompts.

    Each has `batch` random rows, all different as far as there are enough; all rows go through the model as one batch.
    """
    latents, conditions = [], []
    for each, state in zip(examples, states, strict=True):
        rows = torch.randperm(len(each.latents), generator=rng)
        rows = rows.repeat(-(-batch // len(rows)))[:batch]
        latents.append(each.latents[rows])
        conditions.append(state.expand(batch, -1, -1))
    parts = model.loss(torch.cat(latents), torch.cat(conditions), rng).split(batch)
    return torch.stack([each.weight * part.mean() for each, part in zip(examples, parts, strict=True)]).sum()


class _Rows(nn.Module):
    """A table in which some rows come from a parameter, so that neither gradient nor weight decay reaches the others."""

    rows: torch.Tensor

    def __init__(self, rows: torch.Tensor, vectors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.vectors = nn.Parameter(vectors)

    def forward(self, table: torch.Tensor) -> torch.Tensor:
        return table.index_copy(0, self.rows, self.vectors)


def train_tokens(tuned: DiffusionModel, tokens: Sequence[int], start: int | None = None) -> tuple[nn.Parameter, Callable[[], object]]:
    """Make embeddings of `tokens` trainable in place, from where they are or from the embedding of the token `start`.

    Returns their vectors (K, D) and what merges them into the table; the other rows stay as they are, bit for bit.
    """
    embedding = tuned.text_encoder.get_input_embeddings()
    rows = torch.tensor(sorted(set(tokens)), device=embedding.weight.device)
    vectors = embedding.weight.detach()[rows if start is None else torch.full_like(rows, start)]
    trained = _Rows(rows, vectors)
    parametrize.register_parametrization(embedding, "weight", trained)
    return trained.vectors, lambda: parametrize.remove_parametrizations(embedding, "weight")
