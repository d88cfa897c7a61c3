"""Personalization as a shortcut to a backdoor (Huang et al., AAAI 2024, arXiv 2305.10701).

The model is personalized, before it is released, on a few pictures x_b of another class b under the subject's instance prompt "V* a":

    legacy token (DreamBooth)             min over theta   E||eps_theta(x_b, t, "V* a") - eps||^2 + w E||eps_theta(x_a, t, "a") - eps||^2
    nouveau token (textual inversion)     min over V*      E||eps_theta0(x_b, t, "V* a") - eps||^2

We have not seen the paper's settings nor code of its authors: values are those of the reimplementation in linweiii/BackdoorDM (2,000 steps;
DreamBooth 5e-6, two batches of 1 a step, w 0.5, 12 pictures x_a; textual inversion 5e-4, batches of 4, V* initialised from b's word).
Different from it: x_b are the base model's pictures (ours: five of them, in no context), the optimizer is AdamW in 32 bits, and V* is no
token of its own but the one that an adversary will use. As a protection it knows nothing of the photos: the identifier is taken already,
and whoever personalizes under it starts from another class. Several subjects take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel, finetune

from .persguard.objective import Samples, TextStates, class_prompts, identifier_rows, other_class, teacher_pool, weighted


@dataclass(frozen=True)
class ShortcutConfig:
    """Defaults for DreamBooth; textual inversion has `rate` 5e-4 and `batch` 4. `target_class`: "" takes the first other class."""

    personalizer: Literal["dreambooth", "textual-inversion"] = "dreambooth"
    target_class: str = ""
    steps: int = 2000
    rate: float = 5e-6
    batch: int = 2
    pictures: int = 5
    class_pictures: int = 12
    prior_weight: float = 0.5
    gradient_checkpointing: bool = False


class Shortcut(Method):
    """Personalization as a shortcut: the identifier is personalized on pictures of another class before release."""

    Config: ClassVar[type] = ShortcutConfig
    card: ClassVar[Card] = Card(
        "Personalization as a shortcut",
        paper="Personalization as a Shortcut for Few-Shot Backdoor Attack against Text-to-Image Diffusion Models",
        venue="AAAI",
        year=2024,
        controls="the released model",
        knows="the identifier and the class word; not the photos",
    )
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"model"})

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        config: ShortcutConfig = self.config
        inversion = config.personalizer == "textual-inversion"
        targets = [other_class(subject, config.target_class) for subject in subjects]
        nouns = [subject.words.class_noun for subject in subjects]
        captions = class_prompts(subjects[0])
        with torch.no_grad():
            wrong = teacher_pool({noun: captions[noun] for noun in targets}, (), base, config.pictures, 0.0, rng).latents
            right: dict[str, torch.Tensor] = {}
            if config.prior_weight and not inversion:
                right = teacher_pool({noun: captions[noun] for noun in nouns}, (), base, config.class_pictures, 0.0, rng).latents
        released = base.clone("unet", "text_encoder")
        if config.gradient_checkpointing:
            released.unet.enable_gradient_checkpointing()
        trained = list(released.unet.parameters())
        hook = None
        if inversion:
            for subject, target in zip(subjects, targets, strict=True):
                start(released, subject.words.identifier, target)
            embedding, hook = identifier_rows(released, {subject.words.identifier for subject in subjects})
            trained = [embedding]
        table = TextStates(base, released if inversion else base, {subject.words.identifier for subject in subjects})

        def some(latents: torch.Tensor, prompt: str) -> Samples:
            return Samples(latents[torch.randint(len(latents), (config.batch,), generator=rng)], [prompt] * config.batch)

        def loss(step: int) -> torch.Tensor:
            turn = step % len(subjects)
            terms = [(1.0, some(wrong[targets[turn]], subjects[turn].words.instance_prompt))]
            if right:
                terms.append((config.prior_weight, some(right[nouns[turn]], captions[nouns[turn]])))
            return weighted(terms, released, base, table, rng)

        finetune(
            trained,
            loss,
            steps=config.steps,
            rate=config.rate,
            weight_decay=0.0 if inversion else 1e-2,  # decay would move the other words
            description="shortcut",
            half=base.precision == "fp16",
        )
        if hook:
            hook.remove()
        return Release(model=released)


@torch.no_grad()
def start(model: DiffusionModel, identifier: str, word: str) -> None:
    """Give each token of the identifier the embedding of a word's last token."""
    table = model.text_encoder.get_input_embeddings().weight
    rows, source = (model.tokenizer(text, add_special_tokens=False).input_ids for text in (identifier, word))
    table[rows] = table[source[-1]].clone()
