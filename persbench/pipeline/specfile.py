"""A run as a YAML file: every option of `persbench run` is a key, checked by pydantic; the cells that it means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, field_validator

from persbench import registry
from persbench.errors import PersbenchError, UnknownNameError
from persbench.tracks.base import Protocol

from .spec import Attack, RunSpec
from .store import canonical

OUTPUT = Path("persbench-runs")
SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
Scalar = bool | int | float | str


def _list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _commas(value: Any) -> Any:
    words = [word for item in _list(value) for word in (item.split(",") if isinstance(item, str) else [item])]
    return [word.strip() if isinstance(word, str) else word for word in words if word != ""]


Names = Annotated[list[str], BeforeValidator(_list), Field(min_length=1)]
_changeable: dict[str, Any] = {f.name: (get_type_hints(Protocol)[f.name] | None, None) for f in fields(Protocol)}
ProtocolChanges: type[BaseModel] = create_model(
    "ProtocolChanges",
    __config__=ConfigDict(extra="forbid"),
    __doc__="Numbers of the track's standard protocol that this run replaces.",
    **_changeable,
)


class Specification(BaseModel):
    """What `persbench run` is to do."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="persbench run")

    methods: Names = Field(description="Protection, by name; repeat for several, or 'all'.")
    attacks: Names = Field(["lora"], description="Attack (jpeg+lora@identifier) or set (standard, strong); repeat.")
    tracks: Names = Field(["avatars"], description="Track: subjects, prompts, judges, protocol; repeat.")
    bases: Names = Field([""], description="Folder of a diffusers pipeline; the track's own base model if left out; repeat.")
    subjects: Annotated[list[str], BeforeValidator(_commas), Field(min_length=1)] = Field(
        ["quick"], description="Lists of the track (quick, all) or names, separated by commas."
    )
    together: int = Field(1, ge=1, description="How many subjects one release protects at once.")
    seeds: Annotated[list[int], BeforeValidator(_commas), Field(min_length=1)] = Field([0], description="Seeds, separated by commas.")
    budget: float | Literal["standard"] | None = Field(
        None,
        description="One budget for all image-level methods, in 8-bit levels, or 'standard': the track's; each method's own if left out.",
    )
    bystanders: int | None = Field(None, ge=0, description="Bystanders to watch for each subject; as the track says if left out.")
    options: dict[str, Scalar | dict[str, Scalar]] = Field(
        {}, description="Option of a plug-in: key=value, or name.key=value where several have it."
    )
    protocol: ProtocolChanges | None = Field(  # type: ignore[valid-type]
        None, description="YAML or JSON mapping of protocol numbers to replace; results then compare with nothing else."
    )
    output: Path = Field(OUTPUT, description="Where the store, the records and the pictures go.")
    store: str = Field(
        "",
        description="Path or URL (s3://bucket/folder) of the store; below the output folder if left out, or where it was told before.",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="fp32, fp16 or bf16 (mixed precision).")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, ...")
    keep: Literal["all", "pictures", "records"] = Field(
        "pictures", description="What stays once the run needs it no more: all, pictures (no weights), or records."
    )
    executor: Literal["local", "ray"] = Field("local", description="local: this machine; ray: a Ray cluster.")
    workers: int | None = Field(
        None,
        ge=0,
        description="Worker processes on this machine; 0 works in the command's own process. Left out: one of one thread for each core "
        "where a small base model runs on the CPU, else 0.",
    )
    threads: int | None = Field(None, ge=1, description="Threads of each worker; the cores are split between them if left out.")
    address: str = Field("", description="Address of the Ray cluster (auto, host:6379); a new one on this machine if left out.")
    timeout: float | None = Field(None, gt=0, description="Seconds that one stage may take in a worker process.")
    fail_fast: bool = Field(False, description="Stop at the first cell that fails.")
    quiet: bool = Field(False, description="No progress.")
    why: bool = Field(False, description="Say of each stage that runs why the store does not have it.")
    debug: bool = Field(False, description="Show tracebacks.")

    @field_validator("seeds", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        try:
            return [int(seed) if isinstance(seed, str) else seed for seed in _commas(value)]
        except ValueError:
            raise ValueError(f"{value!r} are not whole numbers separated by commas") from None

    @field_validator("budget", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        if value is None or value == "standard":
            return value
        try:
            levels = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{value!r} is neither a number of levels nor 'standard'") from None
        if not 0 < levels <= 255:
            raise ValueError(f"{levels:g} is not between 0 and 255 levels")
        return levels

    @field_validator("options", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        found: dict[str, str] = {}
        for text in value:
            key, separator, given = text.partition("=")
            if not separator:
                raise ValueError(f"{text!r} has no value; write -o key=value")
            found[key] = given
        return found

    @field_validator("protocol", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        return _yaml(value, "protocol") if isinstance(value, str) else value

    def assignments(self) -> list[str]:
        """The options as on the command line: "lora.rank=2"."""
        nested = {name: value if isinstance(value, dict) else {"": value} for name, value in self.options.items()}
        return [f"{name}{'.' if key else ''}{key}={value}" for name, given in nested.items() for key, value in given.items()]

    def changes(self) -> str:
        """Canonical JSON of the replaced protocol numbers; "" when there are none."""
        given: dict[str, Any] = self.protocol.model_dump(exclude_unset=True) if self.protocol else {}
        return canonical(given) if given else ""

    def request(self) -> dict[str, Any]:
        """What decides about cells and results, as plain data; not how or where they are computed."""
        return self.model_dump(mode="json", include={*MATRIX_KEYS})


MATRIX_KEYS = (
    "methods attacks tracks bases subjects together seeds budget bystanders options protocol precision device".split()
)  # the others say how a run goes, not what it is


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise PersbenchError(f"{where}: {line}{getattr(error, 'problem', None) or 'not YAML'}") from None


def read(path: Path) -> dict[str, Any]:
    """The keys of a specification file, unchecked. Raises PersbenchError (one line) when it is no YAML mapping."""
    try:
        found = _yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PersbenchError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise PersbenchError(f"{path}: not a mapping; write keys such as `methods: [none]` (persbench schema shows all)")
    return found


def specification(path: Path | None, given: Mapping[str, Any]) -> Specification:
    """A specification from a file and options that override it (those of plug-ins one by one). Raises PersbenchError: one line."""
    values = read(path) if path else {}
    if path and "options" in given and isinstance(values.get("options"), dict):
        written = _checked({"methods": ["none"], "options": values["options"]}, path).assignments()
        given = {**given, "options": [*written, *given["options"]]}
    return _checked({**values, **given}, path)


def _checked(values: Mapping[str, Any], path: Path | None) -> Specification:
    try:
        return Specification.model_validate(values)
    except ValidationError as error:
        where = f"{path}: " if path else ""
        raise PersbenchError(where + _line(error)) from None


def _line(error: ValidationError) -> str:
    """The first thing that is wrong, as one line with the key and the fix."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    key, kind = ".".join(place), first["type"]
    if kind == "missing":
        return f"no {key}; give --method NAME, or {key}: [NAME] in the specification"
    if kind == "extra_forbidden":
        known = (ProtocolChanges if len(place) > 1 else Specification).model_fields
        return f"unknown key {key!r}; {registry.nearest(place[-1], known)}"
    if kind == "literal_error":
        expected = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"unknown {key} {first['input']!r}; there are: {expected}"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}"


def schema() -> dict[str, Any]:
    """The JSON Schema of specification files."""
    return {"$schema": SCHEMA_URL, **Specification.model_json_schema()}


def matrix(spec: Specification) -> list[RunSpec]:
    """One run specification for each track and base. Raises PersbenchError (one line) for anything that does not exist."""
    names = registry.names("methods") if spec.methods == ["all"] else spec.methods
    for name in names:
        registry.check("methods", name)
    if spec.address and spec.executor != "ray":
        raise PersbenchError("address belongs to the Ray executor; add --executor ray")
    return [_of_track(spec, tuple(dict.fromkeys(names)), track, base) for track in spec.tracks for base in spec.bases]


def _of_track(spec: Specification, methods: tuple[str, ...], track: str, base: str) -> RunSpec:
    known = registry.load("tracks", track)().changed(spec.changes())
    sets, lists = known.attack_sets(), known.subject_lists()
    attacks = [Attack.parse(each) for text in spec.attacks for each in sets.get(text, (text,))]
    chosen = tuple(dict.fromkeys(name for word in spec.subjects for name in lists.get(word, (word,))))
    for name in chosen:
        if name not in lists["all"]:
            raise UnknownNameError(f"unknown subject or list {name!r}; {registry.nearest(name, [*lists['all'], *lists])}")
    if spec.together > len(chosen):
        raise PersbenchError(f"together: {spec.together} is not between 1 and the {len(chosen)} subjects of this run")
    quick = known.protocol.quick_bystanders if spec.subjects == ["quick"] else None
    given = assign_options(spec.assignments(), methods, attacks)
    return RunSpec(
        track,
        methods,
        tuple(dict.fromkeys(map(str, attacks))),
        chosen,
        tuple(dict.fromkeys(spec.seeds)),
        base,
        spec.together,
        known.standard_budget if spec.budget == "standard" else spec.budget,
        quick if spec.bystanders is None else spec.bystanders,
        spec.precision,
        spec.device,
        tuple((name, tuple(sorted(values.items()))) for name, values in sorted(given.items())),
        spec.changes(),
    )


def assign_options(options: Sequence[str], methods: Sequence[str], attacks: Sequence[Attack]) -> dict[str, dict[str, str]]:
    """Options by plug-in. A bare key goes to the plug-ins of the run that have it: methods first, then parts of attacks."""
    if not options:
        return {}
    parts = {("methods", name) for name in methods}
    for attack in attacks:
        parts |= {(kind, part.name) for kind, part in attack.parts()}
    known = {(kind, name): registry.option_names(kind, name) for kind, name in sorted(parts)}
    given: dict[str, dict[str, str]] = defaultdict(dict)
    for text in options:
        path, _, value = text.partition("=")
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
