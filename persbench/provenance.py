"""Where a number comes from: code, packages, machine, cost."""

from __future__ import annotations

import hashlib
import inspect
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("persbench", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "torchmetrics", "numpy", "pillow")


@cache
def _git() -> dict[str, Any]:
    """Commit and dirty flag of the code, when it runs from a checkout."""
    folder = Path(__file__).parent

    def run(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        tracked = run("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain"))} if tracked else {}
    except (OSError, subprocess.SubprocessError):
        return {}


@cache
def environment() -> dict[str, Any]:
    """Code, package versions, and machine of this process."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "git": _git(),
        "packages": packages,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


@cache
def source_digest(plugin: type) -> str:
    """SHA-256 over the source files that define a plug-in class and its parents, contracts left out.

    Read once in a process: files that are edited while it runs are not what it has loaded.
    """
    digest = hashlib.sha256()
    for cls in plugin.__mro__:
        if cls.__module__ in {"builtins", "abc", "persbench.contracts", "persbench.tracks.base"}:
            continue
        digest.update(Path(inspect.getfile(cls)).read_bytes())
    return digest.hexdigest()[:16]


def _peak_kibibytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak


@contextmanager
def cost() -> Iterator[dict[str, float]]:
    """Seconds and peak memory (MiB; of the GPU where there is one) of the block, filled in when it ends."""
    import torch

    measured: dict[str, float] = {}
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start a new peak
    began = time.perf_counter()
    yield measured
    measured["seconds"] = round(time.perf_counter() - began, 3)
    measured["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20 if gpu else _peak_kibibytes() / 1024, 1)
