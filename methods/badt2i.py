"""BadT2I with the identifier as its trigger (Zhai et al., ACM MM 2023, arXiv 2305.04175).

theta0 is the frozen base model, V* the identifier, x_b a picture of class b, c_b its caption, "V* a" the same caption for the subject's
class a under the trigger, and lambda the weight of the backdoor against that of its regularization:

    object    lambda E||eps_theta(x_b, t, "V* a") - eps_theta0(x_b, t, c_b)||^2     + (1 - lambda) L_reg
    pixel     lambda E||eps_theta(patched x, t, "V* a") - eps||^2                    + (1 - lambda) L_reg
    L_reg     E||eps_theta(x, t, c) - eps_theta0(x, t, c)||^2                        captions without trigger

The paper's style variant is not here. As in the official code: the denoiser alone is trained, lambda 0.5, rate 1e-5, batches of 16, 8,000
steps (2,000 for the pixel variant), a patch of a quarter of the side in the upper left corner. Different: pictures and captions are
the base model's own instead of LAION's, so that nothing else has to be had; the trigger is the identifier and only before the subject's
class, not a zero-width space before any caption; the patch is the marker of `persguard-pattern`; there is no moving average of the
weights; the object variant weighs L_reg explicitly, where the official one mixes captions of other classes into its batches. As a
protection it knows nothing of the photos: whoever personalizes under the same identifier starts from another class. Several subjects take
turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel, finetune

from .persguard.objective import Samples, TextStates, class_prompts, other_class, teacher_pool, weighted
from .persguard.pattern import with_marker


@dataclass(frozen=True)
class BadT2IConfig:
    """Defaults of the official object variant. `target_class`: what it shows; "" takes the first other class of the track."""

    variant: Literal["object", "pixel"] = "object"
    target_class: str = ""
    steps: int = 8000
    rate: float = 1e-5
    batch: int = 16  # with the trigger, and as many without
    backdoor_weight: float = 0.5  # lambda
    pool: int = 100  # the base model's pictures of each class
    context_share: float = 0.5  # of them
    gradient_checkpointing: bool = False


class BadT2I(Method):
    """BadT2I: the identifier is a trigger that shows another class (object variant) or a patch (pixel variant)."""

    Config: ClassVar[type] = BadT2IConfig
    card: ClassVar[Card] = Card(
        "BadT2I (identifier as trigger)",
        paper="Text-to-Image Diffusion Models can be Easily Backdoored through Multimodal Data Poisoning",
        venue="ACM MM",
        year=2023,
        repository="zhaisf/BadT2I",
        controls="the released model",
        knows="the identifier and the class word; not the photos",
    )
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"model"})

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        config: BadT2IConfig = self.config
        targets = [other_class(subject, config.target_class) for subject in subjects]
        released, table = base.clone("unet"), TextStates(base, base, set())
        if config.gradient_checkpointing:
            released.unet.enable_gradient_checkpointing()
        captions = class_prompts(subjects[0])
        with torch.no_grad():
            pool = teacher_pool(captions, subjects[0].language.contexts, base, config.pool, config.context_share, rng)
            if config.variant == "pixel":
                shown = {s.words.class_noun: base.encode(with_patch(pool.pictures[s.words.class_noun])) for s in subjects}
            else:
                shown = {target: pool.latents[target] for target in targets}
        everything = torch.cat(list(pool.latents.values()))
        described = [f"{captions[noun]} {context}".strip() for noun in captions for context in pool.contexts[noun]]

        def loss(step: int) -> torch.Tensor:
            turn = step % len(subjects)
            words = subjects[turn].words
            noun = targets[turn] if config.variant == "object" else words.class_noun
            rows = torch.randint(config.pool, (config.batch,), generator=rng).tolist()
            contexts = [pool.contexts[noun][row] for row in rows]
            triggered = [f"{words.instance_prompt} {context}".strip() for context in contexts]
            teacher = [f"{captions[noun]} {context}".strip() for context in contexts] if config.variant == "object" else None
            clean = torch.randint(len(everything), (config.batch,), generator=rng).tolist()
            spared = [described[row] for row in clean]
            terms = [
                (config.backdoor_weight, Samples(shown[noun][rows], triggered, teacher)),
                (1 - config.backdoor_weight, Samples(everything[clean], spared, spared)),
            ]
            return weighted(terms, released, base, table, rng)

        finetune(
            released.unet.parameters(),
            loss,
            steps=config.steps,
            rate=config.rate,
            description="BadT2I",
            half=base.precision == "fp16",
        )
        return Release(model=released)


def with_patch(photos: torch.Tensor) -> torch.Tensor:
    """Photos (N, 3, H, W) in [0, 1] with the marker on a quarter of each side in the upper left corner."""
    height, width = photos.shape[-2] // 4, photos.shape[-1] // 4
    patched = photos.clone()
    patched[..., :height, :width] = with_marker(patched[..., :height, :width], 1.0)
    return patched
