"""Seconds and memory of planning 100,000 cells, and seconds of the answer to a run that is finished.

    python benchmarks/plan_speed.py [--cells 100000] [--finished 500]

The finished run has made-up records of real size. Times: processor seconds, then wall-clock seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from persbench import registry
from persbench.pipeline.planning import make_plan
from persbench.pipeline.spec import Cell, RunSpec
from persbench.pipeline.stages import Pipeline
from persbench.pipeline.store import Store
from persbench.tracks.avatars import Avatars

JUDGED = ("identity:resnet", "identity:convnext", "detected", "detected_quality", "alignment")


def attacks() -> list[str]:
    """Attacks of up to two countermeasures; none needs class pictures or a tamper."""
    names = ["jpeg", "blur", "resize", "noise", "median", "webp", "bit-depth", "crop-resize"]
    pairs = [f"{a}+{b}+lora" for a, b in itertools.permutations(names, 2)]
    return ["lora", "none", *(f"{name}+lora" for name in names), *pairs]


def spec(cells: int) -> RunSpec:
    """Protections that import, all subjects, as many seeds as it takes."""
    methods = tuple(registry.load_all("methods"))
    chosen, subjects = tuple(attacks()[:32]), Avatars().subject_lists()["all"]
    seeds = -(-cells // (len(methods) * len(chosen) * len(subjects)))
    return RunSpec("avatars", methods, chosen, subjects, tuple(range(seeds)))


def fake_records(output: Path, run: RunSpec, protocol_pictures: int = 16) -> None:
    """A record in the store for each cell, with as many rows as a real one."""
    store = Store(output / "store")
    pipeline = Pipeline(run.track, run.base, store)
    for cell in run.cells():
        node = pipeline.plan(cell)

        def build(folder: Path, cell: Cell = cell) -> dict:
            people = ("", "bystander:nadia:", "bystander:omar:")
            sets = [f"{who}{kind}" for who in people for kind in ("attacked", "control", "floor")]
            rows = [
                {"metric": metric, "set": name, "index": index, "value": 0.1 * len(name) % 1, "error": ""}
                for metric in JUDGED
                for name in sets
                for index in range(protocol_pictures)
            ]
            rows += [{"metric": "linf_levels", "set": "released", "index": index, "value": 8.0, "error": ""} for index in range(4)]
            record = {"status": "ok", "cell": cell.to_dict(), "margin": 0.25, "rows": rows, "configs": {}, "stages": {}, "protocol": {}}
            (folder / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True))
            (folder / "pictures.png").write_bytes(b"\0" * 300_000)
            return {"complete": True}

        store.get("record", node.content, build)


def timed(words: list[str]) -> tuple[float, float]:
    """Processor and wall-clock seconds of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--finished", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cells = spec(given.cells).cells()[: given.cells]
        cpu, began = time.process_time(), time.perf_counter()
        made = make_plan(cells, Store(Path(folder) / "store"))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        stages = sum(line.wanted for line in made.lines)
        print(f"planning {made.cells:,} cells, {stages:,} distinct stages of {made.alone:,}: {cpu:.1f} s cpu, {wall:.1f} s, {peak:.0f} MiB")
        if not given.finished:
            return
        subjects = Avatars().subject_lists()["all"]
        seeds = tuple(range(-(-given.finished // (2 * len(subjects)))))
        run = RunSpec("avatars", ("none", "random-noise"), ("none",), subjects, seeds)
        fake_records(Path(folder), run)
        words = [sys.executable, "-m", "persbench", "run", "-q", "--output", folder, "--subjects", "all", "--attack", "none"]
        words += ["--method", "none", "--method", "random-noise", "--seeds", ",".join(map(str, seeds))]
        for name in ("first answer", "second answer"):
            cpu, wall = timed(words)
            print(f"{name} of {len(run.cells())} finished cells: {cpu:.1f} s cpu, {wall:.1f} s")


if __name__ == "__main__":
    main()
