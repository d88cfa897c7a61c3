"""`persbench run`: protect, attack, generate, score, and say how well the protection held."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persbench import registry
from persbench.errors import PersbenchError, SkippedCell, UnknownNameError

if TYPE_CHECKING:
    from persbench.pipeline.spec import Cell, RunSpec

OUTPUT = Path("persbench-runs")


def run(
    method: Annotated[list[str], typer.Option(help="Protection, by name; repeat for several, or 'all'.")],
    attack: Annotated[list[str], typer.Option(help="Attack (jpeg+lora@identifier) or set (standard, strong); repeat.")] = ["lora"],  # noqa: B006
    track: Annotated[str, typer.Option(help="Track: subjects, prompts, judges, protocol.")] = "avatars",
    base: Annotated[str, typer.Option(help="Folder of a diffusers pipeline; the track's own base model if left out.")] = "",
    subjects: Annotated[str, typer.Option(help="A list of the track (quick, all), or names separated by commas.")] = "quick",
    together: Annotated[int, typer.Option(help="How many subjects one release protects at once.")] = 1,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    budget: Annotated[float | None, typer.Option(help="One budget for all image-level methods, in 8-bit levels.")] = None,
    bystanders: Annotated[int | None, typer.Option(help="Bystanders to watch for each subject; as the track says if left out.")] = None,
    option: Annotated[
        list[str], typer.Option("-o", "--option", help="Option of a plug-in: key=value, or name.key=value where several have it.")
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Where the store, the records and the pictures go.")] = OUTPUT,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16 (mixed precision).")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    keep: Annotated[str, typer.Option(help="What stays once it is no longer needed: all, pictures (no weights) or records.")] = "pictures",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
    why: Annotated[bool, typer.Option("--why", help="Say of each stage that runs why the store does not have it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Run protections against attacks and print how well they held."""
    from rich.console import Console

    spec = specify(method, attack, track, base, subjects, together, seeds, budget, bystanders, option, precision, device)
    console = Console(stderr=True)
    warnings.showwarning = lambda message, category, *_: (
        None if category is not UserWarning else console.print(f"[yellow]warning:[/] {message}", highlight=False)
    )
    results = execute(spec, output, console, quiet, why, debug, keep)
    from persbench.leaderboard.terminal import print_run

    print_run(Console(), results, output)
    if all(result.error for result in results):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Result:
    """A cell that ran: its record and where it lies, or why there is none."""

    cell: Cell
    record: dict[str, Any] | None
    path: Path | None
    error: str = ""
    skipped: str = ""


def specify(
    methods: list[str],
    attacks: list[str],
    track: str,
    base: str,
    subjects: str,
    together: int,
    seeds: str,
    budget: float | None,
    bystanders: int | None,
    options: list[str],
    precision: str,
    device: str,
) -> RunSpec:
    """A checked run specification. Raises PersbenchError (one line) for anything that does not exist."""
    registry.check("tracks", track)
    if methods == ["all"]:
        methods = registry.names("methods")
    for name in methods:
        registry.check("methods", name)
    if precision not in {"fp32", "fp16", "bf16"}:
        raise PersbenchError(f"unknown precision {precision!r}; there are: fp32, fp16, bf16")
    if budget is not None and not 0 < budget <= 255:
        raise PersbenchError(f"budget {budget:g} is not between 0 and 255 levels")
    from persbench.pipeline.spec import Attack, RunSpec

    known = registry.load("tracks", track)()
    sets = known.attack_sets()
    parsed = [Attack.parse(each) for text in attacks for each in sets.get(text, (text,))]
    lists = known.subject_lists()
    chosen = lists[subjects] if subjects in lists else tuple(name.strip() for name in subjects.split(",") if name.strip())
    protected = lists["all"]
    for name in chosen:
        if name not in protected:
            raise UnknownNameError(f"unknown subject or list {name!r}; {registry.nearest(name, [*protected, *lists])}")
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise PersbenchError(f"seeds {seeds!r} are not whole numbers separated by commas") from None
    if not 1 <= together <= len(chosen):
        raise PersbenchError(f"--together {together} is not between 1 and the {len(chosen)} subjects of this run")
    if bystanders is None and subjects == "quick":
        bystanders = known.protocol.quick_bystanders
    given = assign_options(options, methods, parsed)
    return RunSpec(
        track,
        tuple(dict.fromkeys(methods)),
        tuple(dict.fromkeys(map(str, parsed))),
        chosen,
        numbers,
        base,
        together,
        budget,
        bystanders,
        precision,
        device,
        tuple((name, tuple(sorted(values.items()))) for name, values in sorted(given.items())),
    )


def assign_options(options: list[str], methods: list[str], attacks: list[Any]) -> dict[str, dict[str, str]]:
    """Options by plug-in. A bare key goes to the plug-ins of the run that have it: methods first, then parts of attacks."""
    if not options:
        return {}
    parts = {("methods", name) for name in methods}
    for attack in attacks:
        parts |= {(kind, part.name) for kind, part in attack.parts()}
    known = {(kind, name): registry.option_names(kind, name) for kind, name in sorted(parts)}
    given: dict[str, dict[str, str]] = defaultdict(dict)
    for text in options:
        path, separator, value = text.partition("=")
        if not separator:
            raise PersbenchError(f"option {text!r} has no value; write -o key=value")
        name, dot, key = path.rpartition(".")
        if dot:
            names = {plugin for _, plugin in known}
            if name not in names:
                raise UnknownNameError(f"option {text!r}: no plug-in {name!r} in this run; {registry.nearest(name, names)}")
            owners = [(kind, plugin) for kind, plugin in known if plugin == name]
        else:
            owners = [each for each, keys in known.items() if key in keys]
            owners = [each for each in owners if each[0] == "methods"] or owners
            if not owners:
                everything = {k for keys in known.values() for k in keys}
                raise UnknownNameError(f"no plug-in of this run has an option {key!r}; {registry.nearest(key, everything)}")
        for kind, plugin in owners:
            registry.configure(plugin, registry.load(kind, plugin), {key: value})
            given[plugin][key] = value
    return dict(given)


def execute(spec: RunSpec, output: Path, console: Any, quiet: bool, why: bool, debug: bool, keep: str) -> list[Result]:
    """Run all cells; a failing cell becomes an error and the others go on."""
    import torch

    from persbench.pipeline.store import Store, StoreError, digest, write_atomically
    from persbench.pipeline.upkeep import DROPS, Keeper
    from persbench.progress import reporting

    if keep not in DROPS:
        raise PersbenchError(f"unknown --keep {keep!r}; there are: {', '.join(DROPS)}")

    torch.set_flush_denormal(True)
    from persbench.pipeline.stages import Pipeline

    store = Store(output / "store")
    pipeline = Pipeline(spec.track, spec.base, store, spec.precision, spec.device)
    results = []
    cells = spec.cells()
    keeper = Keeper(store, keep)
    for cell in cells if keep != "all" else ():
        with suppress(PersbenchError):  # it is met again below
            keeper.expect(pipeline.plan(cell))
    with reporting(console, quiet, why) as report:
        for number, cell in enumerate(cells):
            report.cell(number, len(cells), f"{cell.method} · {cell.attack} · {cell.subject}")
            path = output / "records" / f"{digest(asdict(cell))[:16]}.json"
            try:
                node = pipeline.plan(cell)
                artefact = node.run(store)
                text = artefact.path("record.json").read_text("utf-8")
                result = Result(cell, json.loads(text) | {"sheet": str(artefact.path("pictures.png"))}, path)
                keeper.done(node, artefact.manifest["complete"])
            except StoreError:  # the next cell would meet it too
                raise
            except SkippedCell as reason:
                text, result = no_record(cell, "skipped", str(reason)), Result(cell, None, path, skipped=str(reason))
            except PersbenchError as error:
                if debug:
                    raise
                text, result = no_record(cell, "error", str(error)), Result(cell, None, path, error=str(error))
            if not path.exists() or path.read_text("utf-8") != text:
                write_atomically(path, text)
            results.append(result)
        report.cell(len(cells), len(cells), "done")
    return results


def no_record(cell: Cell, status: str, reason: str) -> str:
    """What stands in a cell's place on the leaderboard when there is nothing to score: "skipped" or "error", and why."""
    return json.dumps({"cell": asdict(cell), "status": status, "reason": reason, "rows": []}, indent=1, sort_keys=True)
