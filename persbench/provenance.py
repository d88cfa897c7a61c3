"""Where a number comes from: code, packages, machine, cost."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
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


def _processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


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
        "cpu": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",  # another one may round the last bits another way
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


# What says nothing about a plug-in's numbers, or has a digest of its own in the keys.
NOT_FOLLOWED = (
    "persbench.cli persbench.contracts persbench.errors persbench.pictures persbench.pipeline persbench.progress persbench.provenance"
    " persbench.registry persbench.tracks"
).split()


@cache
def source_digest(plugin: type) -> str:
    """SHA-256 over the code of a class, its parents, and the modules of persbench and of its own package that they import.

    Comments and docstrings do not count. Read once in a process: files that are edited while it runs are not what it has loaded.
    """
    waiting = {cls.__module__ for cls in plugin.__mro__} - {"builtins", "abc"}
    packages = {"persbench", plugin.__module__.partition(".")[0]}
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] not in packages or any(f"{name}.".startswith(f"{no}.") for no in NOT_FOLLOWED):
            continue
        found[name], imported = _code(name)
        waiting |= set(imported)
    return hashlib.sha256("\0".join(f"{name} {code}" for name, code in sorted(found.items())).encode()).hexdigest()[:16]


@cache
def _code(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's code without comments and docstrings, and what it imports (modules, or names that may be modules)."""
    spec = importlib.util.find_spec(module) if _is_module(module) else None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return "", ()
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            imported += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree), tuple(imported)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a name in a module, not a module
        return False


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
