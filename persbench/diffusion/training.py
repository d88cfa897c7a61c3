"""The training loop of every personalizer and every method that changes the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from persbench.errors import PersbenchError
from persbench.progress import steps as progress_steps


def finetune(
    parameters: Iterable[nn.Parameter] | Mapping[float, Iterable[nn.Parameter]],
    loss: Callable[[int], torch.Tensor],
    *,
    steps: int,
    rate: float,
    description: str,
    weight_decay: float = 1e-2,
    clip: float = 1.0,
    decay: bool = False,
    half: bool = False,
) -> None:
    """Minimise `loss(step)`, a scalar, over `parameters` with AdamW at a constant rate, or one that falls to 0 along a line (`decay`).

    A mapping gives parameters by what `rate` is multiplied with for them.
    Gradients are on for these parameters while it runs and off afterwards. `half` scales the loss for fp16. Raises PersbenchError
    when the loss is not finite.
    """
    groups = parameters if isinstance(parameters, Mapping) else {1.0: parameters}
    optimizer = torch.optim.AdamW(
        [{"params": list(group), "lr": rate * factor} for factor, group in groups.items()], weight_decay=weight_decay
    )
    initials = [group["lr"] for group in optimizer.param_groups]
    trained = [parameter.requires_grad_(True) for group in optimizer.param_groups for parameter in group["params"]]
    scaler = torch.amp.GradScaler(enabled=half and torch.cuda.is_available())
    for step in progress_steps(range(steps), description):
        if decay:
            for group, initial in zip(optimizer.param_groups, initials, strict=True):
                group["lr"] = initial * (1 - step / steps)
        descend(optimizer, loss(step), scaler, f"{description}, step {step}", clip)
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None


def descend(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, scaler: torch.amp.GradScaler, description: str, clip: float = 1.0
) -> None:
    """One step of `optimizer` down the scalar `loss`, the gradient clipped to a norm. Raises PersbenchError when it is not finite."""
    if not torch.isfinite(loss):
        raise PersbenchError(f"{description}: the loss is {loss.item()}; lower the rate")
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], clip)
    scaler.step(optimizer)
    scaler.update()
