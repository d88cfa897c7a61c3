"""The options of `persbench run` and `persbench plan`: the keys of a specification, each with its flag."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from persbench.pipeline.specfile import Specification

# Where the flag is not simply the key.
FLAGS: dict[str, tuple[str, ...]] = {
    "methods": ("-m", "--method"),
    "attacks": ("-a", "--attack"),
    "tracks": ("--track",),
    "bases": ("--base",),
    "options": ("-o", "--option"),
    "quiet": ("-q", "--quiet"),
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, after its own parameters, an option for each key of a specification; it gets as `**given` those that were used."""

    def called(**words: Any) -> None:
        own = {name: words.pop(name) for name in [*words] if name not in Specification.model_fields}
        command(**own, **{name: value for name, value in words.items() if value not in (None, [])})

    own = [p for p in Signature.from_callable(command, eval_str=True).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    options = []
    for name, field in Specification.model_fields.items():
        listed = name == "options" or get_origin(field.annotation) is list
        kind: Any = list[str] if listed else bool if field.annotation is bool else str
        default = field.default
        shown = (
            "" if field.is_required() or kind is bool else " ".join(map(str, default)) if isinstance(default, list) else str(default or "")
        )
        option = typer.Option(*FLAGS.get(name, (f"--{name.replace('_', '-')}",)), help=field.description, show_default=shown or False)
        options.append(Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]))
    called.__signature__ = Signature([p.replace(kind=Parameter.KEYWORD_ONLY) for p in own] + options)  # type: ignore[attr-defined]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


Spec = Annotated[Path | None, typer.Option("--spec", help="YAML file with any of these options as keys (persbench schema shows them).")]
