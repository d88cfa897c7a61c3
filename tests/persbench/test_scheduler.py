"""The matrix on fake and on real workers: each stage once, the same records, and faults that stay where they are."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persbench import cli
from persbench.cli.run import workers
from persbench.errors import PersbenchError
from persbench.pipeline.executors import processes
from persbench.pipeline.executors.base import Executor, Outcome, Task
from persbench.pipeline.executors.processes import Processes
from persbench.pipeline.scheduler import Scheduler
from persbench.pipeline.spec import Cell, RunSpec
from persbench.pipeline.specfile import Specification
from persbench.pipeline.stages import Pipeline, StageError, walk
from persbench.pipeline.store import Store, store_of

# The code paths of a run in seconds; in the specification, so that worker processes have it too.
SHORT = """
protocol:
  prompts: ["a photo of {}"]
  pictures_per_prompt: 2
  inference_steps: 2
  bystanders: 1
  quick_bystanders: 1
  prior_pictures: 1
  options: {lora: {steps: 2}}
"""


def write(folder: Path, base: Path, *lines: str) -> Path:
    path = folder / "run.yaml"
    path.write_text("\n".join([f"bases: ['{base}']", "subjects: ada", *lines, SHORT]))
    return path


def rows(output: Path) -> dict[str, tuple]:
    """What must be equal however a run was executed: rows and keys by record file."""
    found = {}
    for path in (output / "records").glob("*.json"):
        record = json.loads(path.read_text())
        found[path.name] = record["status"], record["rows"], record.get("pictures"), record.get("reason")
    return found


# --- order, sharing and faults, on an executor that only pretends


class Pretender(Executor):
    """Makes empty artefacts; tasks whose title is in `bad` fail."""

    def __init__(self, store: Store, workers: int = 1, bad: str = "") -> None:
        self.store, self.workers, self.bad = store, workers, bad
        self.tasks: list[tuple[int, Task]] = []
        self.ended: list[Outcome] = []
        self.closed = False

    def slots(self):
        return range(self.workers)

    def start(self, worker: int, task: Task) -> None:
        self.tasks.append((worker, task))
        if self.bad and self.bad in task.title:
            self.ended.append(Outcome(worker, task.key, StageError(f"{task.title}: bad")))
            return
        folder = self.store.folder(task.stage, task.key)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"key": task.key, "files": {}, "complete": True}))
        (folder / "record.json").write_text('{"rows": []}')
        self.ended.append(Outcome(worker, task.key))

    def wait(self):
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def cells(tiny_epsilon) -> list[Cell]:
    methods = ("none", "random-noise", "persguard-target")
    return RunSpec("avatars", methods, ("lora", "jpeg+lora"), ("ada", "boris"), (0,), str(tiny_epsilon), bystanders=1).cells()


def pretend(cells, folder, **how):
    fast = {name: how.pop(name) for name in ("fail_fast",) if name in how}
    store = Store(folder / "store")
    executor = Pretender(store, **how)
    return Scheduler(cells, store, folder, executor, **fast).run(), executor


def test_each_stage_runs_once_after_what_it_needs_and_releases_stay_together(cells, tmp_path) -> None:
    results, executor = pretend(cells, tmp_path, workers=2)
    assert [result.cell for result in results] == cells
    assert all(result.path.exists() and not result.error for result in results)
    run = Pipeline("avatars", cells[0].base, Store(tmp_path / "other"))
    wanted = {node.key: node for cell in cells for node in walk(run.plan(cell))}
    order = [task.key for _, task in executor.tasks]
    assert Counter(order) == Counter([*wanted])
    place = {key: number for number, key in enumerate(order)}
    assert all(place[needed.key] < place[key] for key, node in wanted.items() for needed in node.inputs)
    for worker in (0, 1):  # a worker takes up a protected model once, not again and again
        used = [task.uses for number, task in executor.tasks if number == worker and task.uses.startswith("protect:")]
        changes = 1 + sum(a != b for a, b in itertools.pairwise(used))
        assert used and changes == len(set(used))
    assert executor.closed


def test_a_failing_stage_takes_its_own_cells_along_and_no_other(cells, tmp_path) -> None:
    results, executor = pretend(cells, tmp_path, bad="protect ada with persguard-target")
    failed = {(r.cell.method, r.cell.subject, r.cell.attack) for r in results if r.error}
    assert failed == {("persguard-target", "ada", "lora"), ("persguard-target", "ada", "jpeg+lora")}
    assert len(results) == len(cells)
    assert sum("with persguard-target" in task.title for _, task in executor.tasks) == 2  # ada's failed once, boris's is there
    again, executor = pretend(cells, tmp_path)  # the same command tries what failed, and only that
    assert not any(r.error for r in again)
    assert {task.cell.subject for _, task in executor.tasks} == {"ada"}


def test_fail_fast_stops_at_the_first_failing_cell(cells, tmp_path) -> None:
    results, executor = pretend(cells, tmp_path, bad="protect ada with random-noise", fail_fast=True)
    assert [r.cell.method for r in results if r.error] != []
    assert len(results) < len(cells)
    assert executor.closed


# --- real processes


@pytest.fixture(scope="module")
def serial(tmp_path_factory, tiny_epsilon) -> tuple[Path, Path]:
    """A specification, and the folder where it was run in this process."""
    folder = tmp_path_factory.mktemp("serial")
    path = write(folder, tiny_epsilon, "methods: [none, random-noise]", "attacks: [lora, none]", "threads: 1", "quiet: true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["persbench", "run", "--spec", str(path), "--output", str(folder / "out")])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code
    return path, folder / "out"


def test_a_changed_protocol_is_announced_and_a_finished_run_answers_without_torch(serial) -> None:
    path, output = serial
    code = (
        "import sys; from persbench import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stopped: assert not stopped.code, stopped.code\n"
        "assert 'torch' not in sys.modules"
    )
    words = ["run", "--spec", str(path), "--output", str(output)]
    subprocess.run([sys.executable, "-m", "persbench", *words], check=True, capture_output=True, timeout=120)  # as whoever asks again
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "How well did random-noise hold under lora?" in done.stdout
    assert "compare its results with each other only" in " ".join(done.stderr.split())


def test_a_finished_run_is_looked_at_again_when_a_record_is_gone(serial, call) -> None:
    path, output = serial
    before = rows(output)
    next((output / "records").glob("*.json")).unlink()
    code, _, err = call("run", "--spec", path, "--output", output)
    assert code == 0, err
    assert rows(output) == before


def test_a_plan_of_what_is_there_has_nothing_to_do(serial, call) -> None:
    path, output = serial
    code, out, err = call("plan", path, "--output", output)
    assert code == 0, err
    assert "4, of which 4 are in the store" in out
    assert "0.00 h" in out


def test_two_workers_make_the_same_records_and_a_failing_method_stops_nobody(serial, plugin, tiny_epsilon, tmp_path, call) -> None:
    _, output = serial
    path = write(tmp_path, tiny_epsilon, "methods: [raises, none, random-noise]", "attacks: [lora, none]", "threads: 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, out, err = call("run", "--spec", path, "--output", tmp_path, "--workers", "2")
    assert code == 0, err
    found = rows(tmp_path)
    assert sorted(status for status, *_ in found.values()) == ["error", "error", "ok", "ok", "ok", "ok"]
    assert "protect ada with raises: RuntimeError: out of luck" in out
    assert "worker 1: " in err and "worker 2: " in err
    for name, (status, values, pictures, _) in rows(output).items():
        others = [row for row in found[name][1] if row["metric"] != "brightness"]  # a metric of the plug-in package
        assert (found[name][0], others, found[name][2]) == (status, values, pictures)


@pytest.mark.usefixtures("plugin")
@pytest.mark.filterwarnings("ignore:.*does not import")
def test_a_stage_that_hangs_or_kills_its_process_is_an_error(tiny_epsilon, tmp_path) -> None:
    store = Store(tmp_path)
    executor = Processes(store.place, 2, threads=1, timeout=60)
    errors: dict[str, PersbenchError | None] = {}
    tasks = {}
    for number, method in enumerate(("hangs", "dies"), 1):
        cell = Cell("avatars", str(tiny_epsilon), method, "none", "ada", 0)
        node = next(n for n in walk(Pipeline("avatars", str(tiny_epsilon), store).plan(cell)) if n.stage == "protect")
        tasks[node.key] = method
        executor.start(number, Task(node.key, node.stage, node.title, cell, number))
    try:
        while len(errors) < 2:
            errors |= {tasks[outcome.key]: outcome.error for outcome in executor.wait()}
            executor.timeout = 2 if errors else 60  # the other one must not be over it while it imports
        processes = [worker.process for worker in executor.workers.values()]
    finally:
        executor.close()
    assert str(errors["hangs"]) == "protect ada with hangs: it took more than 2 s (--timeout)"
    assert "the worker process died by signal 9" in str(errors["dies"])
    assert not any(process.is_alive() for process in processes)


def test_workers_with_nothing_to_do_end_by_themselves(tiny_epsilon, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 60.0)
    store = Store(tmp_path)
    executor = Processes(store.place, 1, threads=1)
    cell = Cell("avatars", str(tiny_epsilon), "none", "none", "ada", 0)
    node = next(n for n in walk(Pipeline("avatars", str(tiny_epsilon), store).plan(cell)) if n.stage == "generate")
    executor.start(1, Task(node.key, node.stage, node.title, cell, 0))
    while not (ended := executor.wait()):
        continue
    process = executor.workers[1].process
    executor.close()
    assert [outcome.error for outcome in ended] == [None]
    assert process.exitcode == 0  # killed, it would leave semaphores behind, and Python would warn


def group_lives(number: int) -> bool:
    """Whether a process group has anybody left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def ends(number: int, seconds: float) -> bool:
    """Whether nobody of a process group is left within some seconds."""
    began = time.monotonic()
    while time.monotonic() - began < seconds and group_lives(number):
        time.sleep(0.1)
    return not group_lives(number)


@pytest.fixture
def hanging(plugin, tiny_epsilon, tmp_path, installed_plugin) -> Iterator[subprocess.Popen]:
    """A run whose only worker hangs in a protection, in a process group of its own."""
    path = write(tmp_path, tiny_epsilon, "methods: [hangs]", "attacks: [none]", "workers: 1", "threads: 1")
    words = [sys.executable, "-m", "persbench", "run", "--spec", str(path), "--output", str(tmp_path)]
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(installed_plugin)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs are born deaf to it
    )
    try:
        assert any("protect ada with hangs" in line for line in process.stderr)
        yield process
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_ctrl_c_stops_within_seconds_and_says_how_to_go_on(hanging) -> None:
    began = time.monotonic()
    os.killpg(hanging.pid, signal.SIGINT)  # as a terminal does
    _, err = hanging.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert hanging.returncode == 130
    assert "the same command goes on from here" in err
    assert ends(hanging.pid, 10)


def test_workers_of_a_killed_run_end_in_the_middle_of_their_stage(hanging) -> None:
    hanging.kill()  # the run alone, as `kill -9` does
    hanging.wait()
    assert ends(hanging.pid, 10)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "file://{}/bucket"], ids=["shared folder", "object storage"])
def test_a_ray_cluster_makes_the_same_records_when_a_node_is_killed(serial, tiny_epsilon, tmp_path, monkeypatch, place) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster as LocalCluster

    from persbench.pipeline.executors.cluster import Cluster
    from persbench.pipeline.specfile import matrix, specification

    path, output = serial
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    asked = specification(path, {})
    work = [cell for run in matrix(asked) for cell in run.cells()]
    store = store_of(tmp_path, place.format(tmp_path))
    executor = Cluster(store.place, cluster.address, threads=1)
    look, ended = executor.wait, []

    def wait():
        ended.extend(found := look())
        if len(ended) >= 3 and doomed in cluster.worker_nodes:
            cluster.remove_node(doomed, allow_graceful=False)
        return found

    monkeypatch.setattr(executor, "wait", wait)
    try:
        results = Scheduler(work, store, tmp_path, executor).run()
    finally:
        cluster.shutdown()
    assert not any(result.error for result in results)
    assert doomed not in cluster.worker_nodes
    assert rows(tmp_path) == rows(output)
    assert not place or len(list((tmp_path / "bucket" / "record").iterdir())) == len(work)


def test_small_models_on_the_cpu_get_a_process_for_each_core(monkeypatch, tiny_epsilon, tmp_path) -> None:
    monkeypatch.delenv("PERSBENCH_WORKERS")
    monkeypatch.setattr(processes, "cores", lambda: 3)
    monkeypatch.setattr(processes.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 7 * 2**30 // 4096}[name])

    def given(**words: Any) -> tuple[int, int | None]:
        return workers(Specification(**({"methods": ["none"], "bases": [str(tiny_epsilon)]} | words)))

    assert given() == (2, 1)  # 7 GiB are not enough for three
    assert given(workers=0) == (0, None)
    assert given(workers=5, threads=2) == (5, 2)
    assert given(device="cuda") == (0, None)
    assert given(timeout=1) == (0, None)
    monkeypatch.setenv("PERSBENCH_WORKERS", "4")
    assert given() == (4, None)
    assert given(workers=1) == (1, None)
    monkeypatch.setenv("PERSBENCH_WORKERS", "")
    large = tmp_path / "unet"
    large.mkdir()
    with (large / "weights.safetensors").open("wb") as file:
        file.truncate(2**30)
    assert given(bases=[str(tmp_path)]) == (0, None)
    monkeypatch.setattr(processes, "cores", lambda: 1)
    assert given() == (0, None)
