"""Keys of artefacts, fast: what many keys are made of is put into canonical JSON once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode  # as store.canonical


class Frozen:
    """A value that does not change any more, with its canonical JSON."""

    __slots__ = ("_value", "text")

    def __init__(self, value: Any, text: str = "") -> None:
        self._value = value
        self.text = text or _text(value)

    @property
    def value(self) -> Any:
        """The value as plain data."""
        return thaw(self._value)


def thaw(value: Any) -> Any:
    """Plain data, for `Frozen` values and mappings with some inside."""
    if isinstance(value, Frozen):
        return value.value
    return {key: thaw(item) for key, item in value.items()} if isinstance(value, dict) else value


def _text(value: Any) -> str:
    kind = type(value)  # the common kinds first: the encoder takes a while to set itself up
    if kind is str:
        return quoted(value)
    if kind is Frozen:
        return value.text
    if kind is dict:
        return compose(value)
    if kind is int:
        return repr(value)
    return "null" if value is None else "[]" if value == () else _encode(value)


def compose(content: Mapping[str, Any]) -> str:
    """`store.canonical` of a mapping whose values may be `Frozen`; what many keys share is not encoded again."""
    return "{" + ",".join([f"{quoted(key)}:{_text(content[key])}" for key in sorted(content)]) + "}"


def key_of(content: Mapping[str, Any]) -> str:
    """`store.digest` of a mapping whose values may be `Frozen`."""
    return key_of_text(compose(content))


def key_of_text(text: str) -> str:
    """The key whose content has this canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


HOLE = Frozen(None, "\0")  # where a text is filled in later; JSON has no such character


class Template:
    """A mapping of which only some values change: the text of the others is made once."""

    def __init__(self, static: Mapping[str, Any], *changing: str) -> None:
        self.names = sorted(changing)
        pieces = compose({**static, **dict.fromkeys(changing, HOLE)}).split(HOLE.text)
        self._line = [text for piece in pieces for text in (piece, "")][:-1]

    def text(self, given: Mapping[str, Any]) -> str:
        """`compose` of the static values and these."""
        line = self._line.copy()
        line[1::2] = [_text(given[name]) for name in self.names]
        return "".join(line)
