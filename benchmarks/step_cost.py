"""What a step of the suite costs beside a bare PyTorch loop on the same tensors: wanted is a ratio of at most 1.1.

    python benchmarks/step_cost.py [--model FOLDER] [--repeats N]

Compared are a round of ASPL (3 surrogate, 6 perturbation and 3 surrogate steps) and a step of the LoRA personalizer, each with the loop
written out below: forward, backward, and the update that the rule asks for (clipped AdamW, or a projected signed step). Times are
processor seconds of this process, so that other work on the machine counts little; each is the least of some repeats that take turns,
and set-up, measured by itself, is taken off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from persbench.attacks.personalizers.lora import TARGETS, Lora, LoraConfig
from persbench.methods.aspl import ASPL, ASPLConfig

from persbench.contracts import Adversary, Subject, Words
from persbench.diffusion import DiffusionModel
from persbench.tracks.avatars import Avatars

WORDS = Words("sks", "person")
RADIUS, STEP = 8 / 255, 0.8 / 255
Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Processor seconds that `work` takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def encode(model: DiffusionModel, photos: torch.Tensor) -> torch.Tensor:
    """Latents of photos in [0, 1]."""
    return model.vae.encode(photos * 2 - 1).latent_dist.sample() * model.vae.config.scaling_factor


def error(model: DiffusionModel, latents: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The denoising loss, a scalar."""
    noise, timesteps = torch.randn_like(latents), torch.randint(1000, (len(latents),))
    predicted = model.unet(model.schedule.add_noise(latents, noise, timesteps), timesteps, states).sample
    return (predicted - model.target(latents, noise, timesteps)).square().mean()


def train(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Forward, backward and clipped AdamW, nothing else."""
    weights = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def attack(model: DiffusionModel, photos: torch.Tensor, states: torch.Tensor, steps: int) -> None:
    """Forward, backward and a projected signed step, nothing else."""
    moved = photos
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        error(model, encode(model, moved), states).backward()
        assert moved.grad is not None
        moved = (photos + (moved.detach() + STEP * moved.grad.sign() - photos).clamp(-RADIUS, RADIUS)).clamp(0, 1)


def aspl(base: DiffusionModel, photos: torch.Tensor, rounds: int) -> tuple[Work, Work, Work]:
    """Rounds of the suite's ASPL, none of them, and the bare loops that they consist of."""
    subject = Subject("subject", photos, WORDS, Avatars.language)

    def suite(rounds: int) -> None:
        method = ASPL(ASPLConfig(8.0, 6, 0.8, rounds=rounds, train_text_encoder=False, prior_weight=0.0))
        method.perturb(subject, base, RADIUS, torch.Generator().manual_seed(0))

    model = base.clone("unet")
    states = base.embed([WORDS.instance_prompt]).detach()

    def loss() -> torch.Tensor:
        return error(model, encode(model, photos[:1]).detach(), states)

    def bare() -> None:
        for _ in range(rounds):
            for attacked in (True, False):
                model.unet.requires_grad_(True)
                train(loss, torch.optim.AdamW(model.unet.parameters(), lr=5e-7), 3)
                model.unet.requires_grad_(False)
                if attacked:
                    attack(model, photos, states.expand(len(photos), -1, -1), 6)

    return lambda: suite(rounds), lambda: suite(0), bare


def lora(base: DiffusionModel, photos: torch.Tensor, steps: int) -> tuple[Work, Work, Work]:
    """Steps of the suite's LoRA personalizer, none of them, and the bare loop."""
    adversary = Adversary(base, photos, Avatars.language, lambda noun: photos)

    def suite(steps: int) -> None:
        personalizer = Lora(LoraConfig(steps=steps, targets="all"))
        personalizer.personalize(photos, WORDS, base, adversary, torch.Generator().manual_seed(0))

    model = base.clone("unet")
    wrapped = peft.get_peft_model(model.unet, peft.LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS["all"]))
    model.unet = wrapped
    optimizer = torch.optim.AdamW([weight for weight in wrapped.parameters() if weight.requires_grad], lr=1e-4)
    states = base.embed([WORDS.instance_prompt]).detach().expand(len(photos), -1, -1)
    latents = encode(base, photos).detach()
    return lambda: suite(steps), lambda: suite(0), lambda: train(lambda: error(model, latents, states), optimizer, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=Avatars().base, help="folder of a diffusers pipeline (default: the embedded model)")
    parser.add_argument("--rounds", type=int, default=2, help="of ASPL in each measurement")
    parser.add_argument("--steps", type=int, default=10, help="of LoRA in each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    base = DiffusionModel.load(given.model)
    photos = torch.rand(4, 3, base.picture_size, base.picture_size, generator=torch.Generator().manual_seed(0))
    for name, works, count in (
        ("aspl round", aspl(base, photos, given.rounds), given.rounds),
        ("lora step", lora(base, photos, given.steps), given.steps),
    ):
        turns = [[seconds(work) for work in works] for _ in range(given.repeats)]
        whole, empty, bare = (min(each) / count for each in zip(*turns, strict=True))
        print(f"{name}: {whole - empty:.3f} s, bare loop {bare:.3f} s, ratio {(whole - empty) / bare:.2f}")


if __name__ == "__main__":
    main()
