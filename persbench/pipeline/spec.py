"""What a run is: names, options and seeds, frozen; everything else is derived from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from persbench import registry
from persbench.errors import PersbenchError, UnknownNameError

_PART = re.compile(r"^(?P<name>[A-Za-z0-9_-]+)(?:\((?P<options>[^()]*)\))?$")


@dataclass(frozen=True)
class Part:
    """One plug-in of an attack, with the options written behind its name: `jpeg(quality=50)`."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Part:
        match = _PART.match(text.strip())
        if not match:
            raise PersbenchError(f"cannot read {text!r} in an attack; write name or name(option=value, ...)")
        options = []
        for item in filter(None, (match["options"] or "").split(",")):
            key, separator, value = item.partition("=")
            if not separator:
                raise PersbenchError(f"cannot read option {item.strip()!r} of {match['name']}; write option=value")
            options.append((key.strip(), value.strip()))
        return cls(match["name"], tuple(options))

    def __str__(self) -> str:
        return self.name + (f"({','.join(f'{k}={v}' for k, v in self.options)})" if self.options else "")


@dataclass(frozen=True)
class Attack:
    """What is done to photos and model, then one personalizer, then a prompt shift: `jpeg+weight-merge+lora@identifier`."""

    countermeasures: tuple[Part, ...]
    tampers: tuple[Part, ...]
    personalizer: Part
    prompt_shift: Part | None

    @classmethod
    def parse(cls, text: str) -> Attack:
        """Read an attack and check its names. Raises UnknownNameError or PersbenchError."""
        before, at, shift = text.partition("@")
        *first, personalizer = (Part.parse(part) for part in re.split(r"\+(?![^()]*\))", before))
        kinds: dict[str, list[Part]] = {"countermeasures": [], "tampers": []}
        for part in first:
            kind = next((kind for kind in kinds if part.name in registry.names(kind)), None)
            if kind is None:
                known = [name for kind in kinds for name in registry.names(kind)]
                raise UnknownNameError(f"unknown countermeasure {part.name!r}; {registry.nearest(part.name, known)}")
            kinds[kind].append(part)
        if personalizer.name not in registry.names("personalizers"):
            for kind in kinds:
                if personalizer.name in registry.names(kind):
                    hint = f"{personalizer.name!r} is a {kind[:-1]}: write {before}+lora{at}{shift}"
                    raise UnknownNameError(f"attack {text!r} ends without a personalizer; {hint}")
            registry.check("personalizers", personalizer.name)
        found = cls(tuple(kinds["countermeasures"]), tuple(kinds["tampers"]), personalizer, Part.parse(shift) if at else None)
        if found.prompt_shift:
            registry.check("prompt_shifts", found.prompt_shift.name)
        return found

    def parts(self) -> list[tuple[str, Part]]:
        """Its parts with the kinds of plug-in that they are, in the order in which they are written."""
        found = [("countermeasures", part) for part in self.countermeasures] + [("tampers", part) for part in self.tampers]
        found.append(("personalizers", self.personalizer))
        return found + ([("prompt_shifts", self.prompt_shift)] if self.prompt_shift else [])

    def __str__(self) -> str:
        chain = "+".join(map(str, (*self.countermeasures, *self.tampers, self.personalizer)))
        return chain + (f"@{self.prompt_shift}" if self.prompt_shift else "")


@dataclass(frozen=True)
class Cell:
    """One (track, base model, method, attack, subject, seed)."""

    track: str
    base: str  # folder, or "" for the track's own base model
    method: str
    attack: str
    subject: str
    seed: int
    group: tuple[str, ...] = ()  # subjects that one release protects at once, this one among them; (): this one alone
    budget: float | None = None  # 8-bit levels; None: the method's own, or the track's
    bystanders: int | None = None  # how many are watched; None: as the track's protocol says
    precision: str = "fp32"
    device: str = "cpu"
    options: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()  # plug-in name -> options given for this run
    protocol: str = ""  # JSON of the protocol's numbers that this run replaces; "": the track's standard protocol

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for keys and records; a standard protocol is not mentioned."""
        found = dict(vars(self))  # all values are plain: asdict would copy them one by one
        if self.protocol:
            return found | {"protocol": json.loads(self.protocol)}
        del found["protocol"]
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Cell:
        """A cell as a record holds it."""
        options = tuple((name, tuple((key, value) for key, value in given)) for name, given in found["options"])
        protocol = json.dumps(found["protocol"], sort_keys=True, separators=(",", ":")) if "protocol" in found else ""
        return cls(**{**found, "group": tuple(found["group"]), "options": options, "protocol": protocol})

    def options_of(self, plugin: str) -> dict[str, Any]:
        """The run's own options for a plug-in."""
        return dict(dict(self.options).get(plugin, ()))


@dataclass(frozen=True)
class RunSpec:
    """The cells of a run: the product of its lists."""

    track: str
    methods: tuple[str, ...]
    attacks: tuple[str, ...]
    subjects: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    base: str = ""
    together: int = 1  # how many subjects one release protects at once, in the order of `subjects`
    budget: float | None = None
    bystanders: int | None = None
    precision: str = "fp32"
    device: str = "cpu"
    options: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = field(default=())
    protocol: str = ""

    def cells(self) -> list[Cell]:
        """All cells; a subject's cells stand together, so that what they share is warm."""
        return [
            Cell(
                self.track,
                self.base,
                method,
                attack,
                subject,
                seed,
                group,
                self.budget,
                self.bystanders,
                self.precision,
                self.device,
                self.options,
                self.protocol,
            )
            for seed in self.seeds
            for subject, group in self._groups()
            for attack in self.attacks
            for method in self.methods
        ]

    def _groups(self) -> list[tuple[str, tuple[str, ...]]]:
        size = self.together
        parts = [self.subjects[first : first + size] for first in range(0, len(self.subjects), size)]
        return [(subject, part if len(part) > 1 else ()) for part in parts for subject in part]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for records."""
        return asdict(self)


def seed_of(*words: object) -> int:
    """A 63-bit seed that depends on the words alone, not on the order of execution."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, words)).encode()).digest()[:8], "big") >> 1
