"""The loop that trains every network of the track: seeded, logged, checkpointed, resumed by running it again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

CHECKPOINT_SECONDS = 120.0


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to 1 percent."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    name: str,
    module: nn.Module,
    loss: Callable[[int, torch.Generator], torch.Tensor],
    folder: Path,
    *,
    steps: int,
    rate: float,
    seed: int,
    average: float | None = None,
    weight_decay: float = 0.0,
    log_every: int = 50,
) -> nn.Module:
    """Minimise `loss(step, generator)` over the parameters of `module`; returns the module with its final weights.

    `average` is the decay of an exponential moving average of the weights; with it the averaged weights are returned. The
    generator of a step depends on (seed, step) alone, so a resumed run sees the same batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.checkpoint.pt"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    shadow = [p.detach().clone() for p in parameters] if average else []
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        shadow, start = state["shadow"], state["step"]
    module.train()

    def save(step: int) -> None:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "shadow": shadow, "step": step}
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    running, saved, began = 0.0, time.monotonic(), time.monotonic()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        value = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if average:
            decay = min(average, (1 + step) / (10 + step))
            torch._foreach_lerp_(shadow, [p.detach() for p in parameters], 1 - decay)
        running += float(value.detach())
        if (step + 1) % log_every == 0:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            print(f"{name} {step + 1}/{steps} loss {running / log_every:.4f} {seconds:.3f} s/step", flush=True)
            running = 0.0
        if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
            save(step + 1)
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, averaged in zip(parameters, shadow, strict=False):
            parameter.copy_(averaged)
    return module.eval()
