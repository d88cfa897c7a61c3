"""Perturbations that last: a pool of surrogates at every stage of learning, and expectation over transformations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from persbench.contracts import Card, Subject
from persbench.diffusion import DiffusionModel
from persbench.errors import PersbenchError
from persbench.progress import steps as progress_steps

from .perturbation import DreamBoothSurrogateConfig, Perturbation, Surrogate, ascend, denoising_loss


@dataclass(frozen=True)
class MetaCloakConfig(DreamBoothSurrogateConfig):
    """MetaCloak's `methods_config.sh` and `metacloak.sh`: budget 11 levels, step a tenth of it."""

    budget_levels: float = 11.0
    steps: int = 6  # of the perturbation, before the surrogate goes on
    step_levels: float = 1.1
    trials: int = 4  # passes over the pool
    pool_steps: int = 1000  # of DreamBooth on the clean photos
    interval: int = 200  # steps between two surrogates of the pool, and of learning on from each
    advance_steps: int = 2  # of the surrogate on the perturbed photos, each time
    samples: int = 1  # transformations that the gradient is averaged over
    blur_kernel: int = 7  # pixels a side, odd; the width is drawn between 0.1 and 2 pixels


class MetaCloak(Perturbation):
    """Photos with a high DreamBooth loss for surrogates early and late in learning, whatever a blur or a flip does to them.

    The pool holds theta_0, theta_200, ... of one DreamBooth run on the clean photos. Several times, from each of them:

        x' <- project(x' + step * sign(grad_x' E_g E ||eps_theta(z_t(g(x')), t, "V* class") - eps||^2))     6 times
        theta <- theta after 2 DreamBooth steps on x'                                                       100 times in turn

    with g a Gaussian blur of random width and, half of the times, a horizontal flip. Source: MetaCloak and its official code, setting
    "gau". Differences from that code: its resize and crop do nothing to photos of the model's size, so they are left out; the class's
    pictures and the surrogate's photos are taken at random; weights are fp32 (official: bf16); the pool is kept as weights only.
    """

    Config: ClassVar[type] = MetaCloakConfig
    card: ClassVar[Card] = Card(
        "MetaCloak",
        paper="MetaCloak: Preventing Unauthorized Subject-driven Text-to-image Diffusion-based Synthesis via Meta-learning (Liu et al.)",
        venue="CVPR",
        year=2024,
        repository="liuyixin-louis/MetaCloak",
        controls="the published photos",
        knows="the base model, the personalizer's loss, the identifier and the class word, and that photos may be blurred or flipped",
    )

    def perturb(self, subject: Subject, base: DiffusionModel, radius: float, rng: torch.Generator) -> torch.Tensor:
        config: MetaCloakConfig = self.config
        if config.blur_kernel % 2 == 0 or config.interval < 1:
            raise PersbenchError(f"metacloak: blur_kernel={config.blur_kernel} must be odd and interval={config.interval} at least 1")
        surrogate = Surrogate.dreambooth(subject.words, base, config, rng)
        pool = [[weights.cpu() for weights in surrogate.snapshot()]]
        for _ in progress_steps(range(config.pool_steps // config.interval), "metacloak: pool"):
            surrogate.train(subject.photos, config.interval, rng)
            pool.append([weights.cpu() for weights in surrogate.snapshot()])

        def view(photos: torch.Tensor) -> torch.Tensor:
            width = 0.1 + 1.9 * float(torch.rand((), generator=rng))
            photos = gaussian_blur(photos, config.blur_kernel, width)
            return photos.flip(-1) if torch.rand((), generator=rng) < 0.5 else photos

        photos = subject.photos
        for start in progress_steps(pool * config.trials, "metacloak"):
            surrogate.restore(start)
            for _ in range(max(1, config.interval // config.advance_steps)):
                photos = ascend(
                    denoising_loss(surrogate.model, surrogate.states(), rng),
                    photos,
                    around=subject.photos,
                    radius=radius,
                    step=self.step(radius),
                    steps=config.steps,
                    views=[view] * config.samples,
                )
                surrogate.restart()
                surrogate.train(photos, config.advance_steps, rng)
        return photos


def gaussian_blur(photos: torch.Tensor, kernel: int, width: float) -> torch.Tensor:
    """Photos (N, 3, H, W) smoothed by a Gaussian of this standard deviation in pixels, cut off at `kernel` pixels a side."""
    across = torch.arange(kernel, device=photos.device, dtype=photos.dtype) - kernel // 2
    weights = torch.exp(-0.5 * (across / width).square())
    weights = weights / weights.sum()
    padded = functional.pad(photos, [kernel // 2] * 4, mode="reflect")
    for shape in ((1, 1, kernel, 1), (1, 1, 1, kernel)):
        padded = functional.conv2d(padded, weights.view(shape).expand(padded.shape[1], 1, *shape[2:]), groups=padded.shape[1])
    return padded
