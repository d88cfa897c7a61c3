"""How good the track is: the numbers that its users rely on, measured on the weights in the package."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persbench import pictures as files
from persbench.diffusion import DiffusionModel
from persbench.tracks.avatars import Avatars
from persbench.tracks.avatars.evaluators import JUDGES, AvatarEvaluators

from . import captions
from .dataset import Pictures
from .draw import BACKGROUNDS, CLASSES, EMPTY
from .evaluators import jpeg

# What issue and design ask for; the report says for each whether it is met, and a test re-checks a sample.
WANTED = {
    "reconstruction_psnr_db": 26.0,
    "judge_class_accuracy": 0.99,
    "judge_background_accuracy": 0.99,
    "generated_class_right": 0.95,
    "generated_background_right": 0.90,
    "auc": 0.99,
    "auc_jpeg50": 0.97,
    "auc_noise8": 0.97,
    "controls_that_learned": 14,
}


def area_under_curve(genuine: torch.Tensor, impostor: torch.Tensor) -> float:
    """Probability that a genuine pair scores higher than an impostor pair; ties count half."""
    everything = torch.cat([genuine, impostor])
    order = everything.argsort()
    ranks = torch.empty(len(everything), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(everything) + 1, dtype=torch.float64)
    first = ranks[: len(genuine)].sum() - len(genuine) * (len(genuine) + 1) / 2
    return float(first / (len(genuine) * len(impostor)))


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def verification_auc(judges: AvatarEvaluators, judge: str, heldout: Pictures, probe: torch.Tensor) -> float:
    """AUC of identity verification within a class: probes (maybe damaged) against clean pictures of the same and other identities."""
    embedded = judges.identity(judge, to_unit(heldout.pixels))
    probes = judges.identity(judge, probe)
    identities = torch.from_numpy(heldout.identities)
    nouns = torch.tensor([[*CLASSES, EMPTY].index(fact["class"]) for fact in heldout.facts])
    scores = probes @ embedded.T
    same_class = (nouns[:, None] == nouns[None]) & (nouns != len(CLASSES))[:, None]
    same = identities[:, None] == identities[None]
    other_picture = ~torch.eye(len(nouns), dtype=torch.bool)
    return area_under_curve(scores[same_class & same & other_picture], scores[same_class & ~same])


def measure(heldout: Pictures, generated: int = 500, store: Path | None = None) -> dict[str, Any]:
    """All numbers of the report. With `store`, the undefended control of every subject is run there (about ten minutes)."""
    track = Avatars()
    judges = AvatarEvaluators(track.base.parent / "judges", track.base / "tokenizer")
    model = DiffusionModel.load(track.base)
    real = to_unit(heldout.pixels)
    rng = torch.Generator().manual_seed(7)
    found: dict[str, Any] = {"reconstruction_psnr_db": round(reconstruction_psnr(model, real), 2)}
    found |= {f"judge_{key}_accuracy": value for key, value in accuracy(judges, real, heldout.facts).items()}
    found |= {f"generated_{key}_right": value for key, value in accuracy(judges, *generate(model, generated, rng)).items()}
    damages = {
        "auc": real,
        "auc_jpeg50": to_unit(np.stack([jpeg(p, 50) for p in heldout.pixels])),
        "auc_noise8": (real + torch.randn(real.shape, generator=rng) * 8 / 255).clamp(0, 1),
    }
    for name, probe in damages.items():
        found[name] = {judge: round(verification_auc(judges, judge, heldout, probe), 5) for judge in JUDGES}
    found["text_state_distance"] = text_distances(model)
    if store is not None:
        found |= controls(track, store)
    found["met"] = {name: _met(found[name], wanted) for name, wanted in WANTED.items() if name in found}
    return found


def _met(value: Any, wanted: float) -> bool:
    return min(value.values()) >= wanted if isinstance(value, dict) else value >= wanted


@torch.no_grad()
def reconstruction_psnr(model: DiffusionModel, real: torch.Tensor) -> float:
    """Mean PSNR in dB of 8-bit reconstructions."""
    values = []
    for part in real.split(64):
        decoded = files.to_levels(model.decode(model.encode(part))).float() / 255
        values.append(-10 * (decoded - part).square().mean(dim=(1, 2, 3)).log10())
    return float(torch.cat(values).mean())


def accuracy(judges: AvatarEvaluators, shown: torch.Tensor, facts: list[dict[str, str]]) -> dict[str, float]:
    """Share of pictures whose class, and whose background given the class, the text-image model reads right."""
    usable = [row for row, fact in enumerate(facts) if fact["class"] != EMPTY]
    nouns = [facts[row]["class"] for row in usable]
    best = judges.class_probabilities(shown[usable]).argmax(dim=1).tolist()
    class_right = np.mean([judges.classes[b] == noun for b, noun in zip(best, nouns, strict=True)])
    right = 0
    for noun in CLASSES:
        rows = [row for row, name in zip(usable, nouns, strict=True) if name == noun]
        prompts = tuple(f"a photo of a {noun} {captions.place(background)}" for background in BACKGROUNDS)
        chosen = judges.best_of(shown[rows], prompts).tolist()
        right += sum(BACKGROUNDS[c] == facts[row]["background"] for c, row in zip(chosen, rows, strict=True))
    return {"class": round(float(class_right), 4), "background": round(right / len(usable), 4)}


def generate(model: DiffusionModel, count: int, rng: torch.Generator) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """`count` generated pictures over all classes and backgrounds, as the protocol samples them."""
    protocol = Avatars.protocol
    pairs = list(product(CLASSES, BACKGROUNDS))
    facts = [{"class": noun, "background": background} for noun, background in (pairs * (count // len(pairs) + 1))[:count]]
    prompts = [f"a photo of a {fact['class']} {captions.place(fact['background'])}" for fact in facts]
    return model.sample(prompts, rng, inference_steps=protocol.inference_steps, guidance=protocol.guidance), facts


@torch.no_grad()
def text_distances(model: DiffusionModel) -> dict[str, float]:
    """Relative distance of the text states at the class word, between prompts that must not be one to the model."""
    prompts = {
        "class": "a photo of a person",
        "sks": "a photo of sks person",
        "t@t": "a photo of t@t person",
        "xxy": "a photo of xxy person",
    }
    word = model.tokenizer("person", add_special_tokens=False).input_ids[0]
    states = {}
    for name, prompt in prompts.items():
        position = model.tokens([prompt])[0].tolist().index(word)
        states[name] = model.embed([prompt])[0, position]
    pairs = [("class", "sks"), ("class", "t@t"), ("sks", "t@t"), ("sks", "xxy")]
    return {f"{a}/{b}": round(float((states[a] - states[b]).norm() / states[a].norm()), 3) for a, b in pairs}


def controls(track: Avatars, store: Path) -> dict[str, Any]:
    """What the undefended LoRA learns of each subject: control minus floor."""
    from persbench.leaderboard.aggregate import score
    from persbench.pipeline.spec import Cell
    from persbench.pipeline.stages import Pipeline
    from persbench.pipeline.store import Store

    pipeline = Pipeline("avatars", "", Store(store))
    learned = {}
    for name in track.subject_lists()["all"]:
        node = pipeline.plan(Cell("avatars", "", "none", "lora", name, 0))
        found = score(files_json(node.run(pipeline.store).path("record.json")))
        learned[name] = round((found.control or 0) - (found.floor or 0), 3)
    return {"control_minus_floor": learned, "controls_that_learned": sum(v >= track.protocol.margin for v in learned.values())}


def files_json(path: Path) -> dict[str, Any]:
    """A JSON file."""
    import json

    return json.loads(path.read_text("utf-8"))
