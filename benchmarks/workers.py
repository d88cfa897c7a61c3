"""Seconds of a matrix by two workers of one thread, by one such worker, and by one process of two threads; and what sharing saves.

    python benchmarks/workers.py SPEC.yaml [--folder FOLDER]

Each way starts with an empty store. Sharing: stage seconds if every cell were run alone over those that were spent, from the manifests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from persbench.pipeline.specfile import matrix, specification
from persbench.pipeline.stages import Pipelines, walk
from persbench.pipeline.store import MANIFEST, Store

WAYS = {
    "two workers, one thread each": ("--workers", "2", "--threads", "1"),
    "one worker, one thread": ("--workers", "1", "--threads", "1"),
    "one process, two threads": ("--workers", "0", "--threads", "2"),
}


def sharing(spec: Path, output: Path) -> tuple[float, float]:
    """Stage seconds of all cells alone, and of the run."""
    pipelines = Pipelines(Store(output / "store"))
    alone, spent = 0.0, {}
    for run in matrix(specification(spec, {})):
        for cell in run.cells():
            for node in walk(pipelines.of(cell).plan(cell)):
                manifest = output / "store" / node.stage / node.key / MANIFEST
                if node.key not in spent and manifest.exists():
                    spent[node.key] = json.loads(manifest.read_text("utf-8"))["cost"]["seconds"]
                alone += spent.get(node.key, 0.0)
    return alone, sum(spent.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--folder", type=Path, help="where the outputs go, to be kept")
    given = parser.parse_args()
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, (way, words) in enumerate(WAYS.items()):
            output = (given.folder or Path(temporary)) / str(number)
            began = time.perf_counter()
            command = [sys.executable, "-m", "persbench", "run", "--spec", str(given.spec), "--output", str(output), "-q", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[way] = time.perf_counter() - began
            print(f"{way}: {seconds[way]:.0f} s", flush=True)
        two, one, process = seconds.values()
        print(f"two workers are {one / two:.2f} times as fast as one, and {process / two:.2f} times as fast as one process of two threads")
        alone, spent = sharing(given.spec, output)
        print(f"every cell alone: {alone:.0f} stage seconds; shared: {spent:.0f}; {alone / spent:.1f} times cheaper")


if __name__ == "__main__":
    main()
