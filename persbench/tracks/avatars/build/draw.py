"""Draw the pictures of the `avatars` track: identities of DiceBear styles on captioned backgrounds.

An *identity* fixes everything that stays when the same subject is seen again (hair, skin, clothes, body, colours); a *shot* of
it varies expression, pose and background. Both are functions of a seed string alone, so every picture can be drawn again.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

SIZE = 64  # pixels a side

# Class -> DiceBear style. Licences and credits: DATA_CARD.md beside the weights.
STYLES = {"person": "personas", "robot": "voxel-bot", "monster": "critters", "planet": "planets"}
CLASSES = tuple(STYLES)
EMPTY = "nothing"  # the class of a picture that shows a background only

# name -> (hue in turns, saturation, value)
BACKGROUND_COLOURS = {
    "red": (0.00, 0.80, 0.80),
    "orange": (0.075, 0.85, 0.97),
    "yellow": (0.145, 0.72, 0.98),
    "green": (0.34, 0.62, 0.62),
    "blue": (0.60, 0.72, 0.82),
    "purple": (0.76, 0.58, 0.68),
    "pink": (0.92, 0.34, 0.98),
    "brown": (0.07, 0.60, 0.42),
    "grey": (0.60, 0.04, 0.58),
    "white": (0.12, 0.03, 0.98),
}
SCENES = ("beach", "forest", "city", "mountains", "space", "room")
BACKGROUNDS = tuple(BACKGROUND_COLOURS) + SCENES

HAIR_COLOURS = {
    "black": (0.72, 0.25, 0.18),
    "brown": (0.06, 0.58, 0.42),
    "blond": (0.125, 0.58, 0.93),
    "red": (0.025, 0.78, 0.80),
    "grey": (0.62, 0.06, 0.76),
    "blue": (0.60, 0.70, 0.86),
    "green": (0.38, 0.62, 0.64),
    "pink": (0.91, 0.52, 0.94),
}
SKIN_TONES = ("#5a3730", "#7a4a3c", "#92594b", "#b16a5b", "#d78774", "#e5a07e", "#eeb4a4", "#f8d5c2")
HAIR_STYLES = (
    "bald balding bobBangs bobCut bunUndercut buzzcut curly curlyBun curlyHighTop extraLong fade long mohawk pigtails "
    "shortCombover shortComboverChops sideShave straightBun"
).split()
EXPRESSIONS = {  # word -> (mouth, eyes)
    "smiling": ("bigSmile", "open"),
    "sad": ("frown", "open"),
    "surprised": ("surprise", "open"),
    "sleeping": ("smirk", "sleep"),
    "winking": ("smile", "wink"),
}


@dataclass(frozen=True)
class Identity:
    """One subject that can be drawn again and again: its class, the style options that stay, and words true of it."""

    seed: str
    class_noun: str
    options: tuple[tuple[str, object], ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Shot:
    """One picture: (64, 64, 3) uint8 pixels and the facts that a caption may name."""

    pixels: np.ndarray
    facts: dict[str, str]


def generator(*words: object) -> np.random.Generator:
    """A random generator that depends on the words alone."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _hex(hue: float, saturation: float, value: float) -> str:
    rgb = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return "#" + "".join(f"{round(c * 255):02x}" for c in rgb)


def _near(rng: np.random.Generator, hsv: tuple[float, float, float], spread: float = 1.0) -> str:
    hue, saturation, value = hsv
    return _hex(
        hue + spread * rng.uniform(-0.015, 0.015),
        saturation + spread * rng.uniform(-0.06, 0.06),
        value + spread * rng.uniform(-0.06, 0.06),
    )


def _mix(first: str, second: str, share: float) -> str:
    pairs = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _vivid(rng: np.random.Generator) -> str:
    return _hex(rng.uniform(), rng.uniform(0.25, 0.85), rng.uniform(0.45, 0.98))


@cache
def _style(name: str) -> Any:
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")))


@cache
def _variants(style: str, component: str) -> tuple[str, ...]:
    definition = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))
    return tuple(definition["components"][component]["variants"])


def identity(class_noun: str, seed: str) -> Identity:
    """The identity of a class that a seed names. Raises KeyError for a class that the track does not draw."""
    style = STYLES[class_noun]
    rng = generator("identity", class_noun, seed)

    def one_of(component: str) -> str:
        return str(rng.choice(_variants(style, component)))

    facts: dict[str, str] = {"class": class_noun}
    if class_noun == "person":
        hair_colour = str(rng.choice(list(HAIR_COLOURS)))
        hair = str(rng.choice(HAIR_STYLES))
        tone = rng.uniform(0, len(SKIN_TONES) - 1.001)
        bearded = rng.uniform() < 0.25
        hair_hex = _near(rng, HAIR_COLOURS[hair_colour])
        options = {
            "hairVariant": hair,
            "hairColor": hair_hex,
            "skinColor": _mix(SKIN_TONES[int(tone)], SKIN_TONES[int(tone) + 1], tone % 1),
            "clothesVariant": one_of("clothes"),
            "clothingColor": _vivid(rng),
            "noseVariant": one_of("nose"),
            "facialHairVariant": one_of("facialHair"),
            "facialHairProbability": 100 if bearded else 0,
            "facialHairColor": hair_hex,
        }
        if hair != "bald":
            facts["hair"] = hair_colour
    elif class_noun == "robot":
        options = {
            "chestVariant": one_of("chest"),
            "eyesVariant": one_of("eyes"),
            "mouthVariant": one_of("mouth"),
            "topVariant": one_of("top"),
            "chestProbability": 100,
            "topProbability": 100,
            "bodyColor": _hex(rng.uniform(), rng.uniform(0.05, 0.7), rng.uniform(0.6, 0.95)),
            "accentColor": _hex(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.45)),
            "glowColor": _hex(rng.uniform(), rng.uniform(0.3, 0.8), 0.95),
            "animationVariant": "none",
        }
    elif class_noun == "monster":
        options = {
            "topVariant": one_of("top"),
            "topProbability": 100,
            "bodyVariant": one_of("body"),
            "patternVariant": one_of("pattern"),
            "patternProbability": 100 if rng.uniform() < 0.6 else 0,
            "cheeksProbability": 0,
            "eyesVariant": one_of("eyes"),
            "mouthVariant": one_of("mouth"),
            "bodyColor": _hex(rng.uniform(), rng.uniform(0.25, 0.75), rng.uniform(0.6, 0.98)),
            "accentColor": _vivid(rng),
            "animationVariant": "none",
        }
    else:
        options = {
            "moonsVariant": one_of("moons"),
            "moonsProbability": 100 if rng.uniform() < 0.65 else 0,
            "ringVariant": one_of("ring"),
            "ringProbability": 100 if rng.uniform() < 0.5 else 0,
            "shadeVariant": "soft",
            "surfaceVariant": one_of("surface"),
            "surfaceProbability": 100,
            "planetColor": _vivid(rng),
            "animationVariant": "none",
        } | {f"star{n}Probability": 0 for n in ("", *(f"{i:02d}" for i in range(2, 13)))}
    return Identity(seed, class_noun, tuple(sorted(options.items())), tuple(sorted(facts.items())))


def _rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _polygon(points: list[tuple[float, float]], fill: str) -> str:
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{fill}"/>'


def _circle(x: float, y: float, radius: float, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}"/>'


def background(name: str, rng: np.random.Generator) -> str:
    """SVG elements that fill a 64 x 64 canvas with a named colour or scene."""
    if name in BACKGROUND_COLOURS:
        return _rectangle(0, 0, 64, 64, _near(rng, BACKGROUND_COLOURS[name], 0.6))
    u = rng.uniform
    if name == "beach":
        sea, sand = u(24, 32), u(42, 48)
        parts = [_rectangle(0, 0, 64, 64, "#9bdcf5"), _circle(u(6, 58), u(7, 13), 5, "#fff1a8")]
        parts += [_rectangle(0, sea, 64, 64 - sea, "#2a8fc7"), _rectangle(0, sand, 64, 64 - sand, "#f2d9a0")]
    elif name == "forest":
        parts = [_rectangle(0, 0, 64, 64, "#bfe3c4"), _rectangle(0, 50, 64, 14, "#4c7a3a")]
        shift = u(-4, 4)
        for i in range(6):
            x, height = shift + 2 + 12 * i, u(30, 46)
            parts.append(_rectangle(x - 1.5, 46, 3, 8, "#6b4a2b"))
            parts.append(_polygon([(x - 8, 50), (x, 50 - height), (x + 8, 50)], "#256b3c"))
    elif name == "city":
        parts = [_rectangle(0, 0, 64, 64, "#f6c7a1")]
        x = u(-8, 0)
        while x < 64:
            width, top = u(9, 14), u(8, 32)
            parts.append(_rectangle(x, top, width, 64 - top, "#4a5068"))
            for wy in range(int(top) + 4, 60, 8):
                parts.append(_rectangle(x + width / 2 - 2, wy, 4, 4, "#ffe08a"))
            x += width + 2
    elif name == "mountains":
        parts = [_rectangle(0, 0, 64, 64, "#cfe6f7")]
        for x, top in ((u(4, 18), u(14, 22)), (u(44, 60), u(10, 18)), (u(26, 38), u(20, 28))):
            parts.append(_polygon([(x - 28, 64), (x, top), (x + 28, 64)], "#7d8799"))
            parts.append(_polygon([(x - 6, top + 9.5), (x, top), (x + 6, top + 9.5)], "#ffffff"))
        parts.append(_rectangle(0, 54, 64, 10, "#8fb56a"))
    elif name == "space":
        parts = [_rectangle(0, 0, 64, 64, "#141433")]
        parts += [_circle(u(2, 62), u(2, 62), u(0.7, 1.3), "#ffffff") for _ in range(16)]
    elif name == "room":
        parts = [_rectangle(0, 0, 64, 64, "#e8d3bd"), _rectangle(0, 48, 64, 16, "#9a6a45")]
        x = u(2, 44)
        parts += [_rectangle(x, 6, 18, 20, "#ffffff"), _rectangle(x + 2, 8, 14, 16, "#8cc9ee")]
    else:
        raise KeyError(f"no background named {name!r}; there are {', '.join(BACKGROUNDS)}")
    return "".join(parts)


def shot(subject: Identity, seed: str) -> Shot:
    """Draw one picture of an identity; expression, pose and background follow from the seed."""
    from dicebear import Avatar

    rng = generator("shot", subject.class_noun, subject.seed, seed)
    options = dict(subject.options)
    facts = dict(subject.facts)
    if subject.class_noun == "person":
        facts["expression"] = str(rng.choice(list(EXPRESSIONS)))
        options["mouthVariant"], options["eyesVariant"] = EXPRESSIONS[facts["expression"]]
    facts["background"] = _any_background(rng)
    # Every style but `personas` brings a backdrop of its own: made transparent, so that ours shows instead.
    if subject.class_noun != "person":
        options["backgroundColor"] = "#00000000"
    svg = Avatar(_style(STYLES[subject.class_noun]), {"seed": subject.seed, "size": SIZE} | options).to_string()
    smallest, largest = (1.02, 1.18) if subject.class_noun == "person" else (0.85, 1.08)
    scale, angle, flip = rng.uniform(smallest, largest), rng.uniform(-8, 8), rng.uniform() < 0.5
    dx, dy = rng.uniform(-4, 4), rng.uniform(0, 4) if subject.class_noun == "person" else rng.uniform(-3, 3)
    mirror = "translate(64 0) scale(-1 1)" if flip else ""
    # People stand on the lower edge, so they turn and grow about its middle; the others about the centre.
    pivot = 64 if subject.class_noun == "person" else 32
    place = f"translate({dx:.2f} {dy:.2f}) rotate({angle:.2f} 32 {pivot}) translate(32 {pivot}) scale({scale:.3f}) translate(-32 -{pivot})"
    canvas = _canvas(f'{background(facts["background"], rng)}<g transform="{place} {mirror}">{svg}</g>')
    return Shot(_rasterize(canvas), facts)


def empty(seed: str) -> Shot:
    """Draw a background with nobody before it."""
    rng = generator("empty", seed)
    name = _any_background(rng)
    return Shot(_rasterize(_canvas(background(name, rng))), {"class": EMPTY, "background": name})


def _any_background(rng: np.random.Generator) -> str:
    return str(rng.choice(list(BACKGROUND_COLOURS) if rng.uniform() < 0.6 else SCENES))


def _canvas(body: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}">{body}</svg>'


def _rasterize(svg: str) -> np.ndarray:
    """(64, 64, 3) uint8 pixels of an SVG, drawn at twice the size and averaged."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.uint8)
