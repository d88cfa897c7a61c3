"""Train the judges: two identity embedders with a margin softmax, and the text-image model on captions known to be true or false."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from persbench.tracks.avatars.evaluators import ENCODERS, TextImage

from . import captions
from .dataset import SHOTS, Pictures
from .draw import EMPTY
from .training import train
from .vae import to_signed

IDENTITY_STEPS = {"resnet": 1800, "convnext": 1000}
TEXT_STEPS, BATCH, RATE = 1200, 96, 1.5e-3
SEEDS = {"resnet": 31, "convnext": 37, "text-image": 41}
SCALE, MARGIN = 20.0, 0.2  # additive margin (CosFace, Wang et al., CVPR 2018)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(64, 64, 3) uint8 through a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def damaged(pictures: Pictures, seed: int) -> torch.Tensor:
    """A copy of all pixels through JPEG of random quality 30 to 95, for augmentation."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([jpeg(p, int(rng.integers(30, 96))) for p in pictures.pixels]))


def augment(versions: list[torch.Tensor], rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Signed pictures (N, 3, 64, 64) of a random version each, with noise, blur, brightness and shift."""
    which = torch.randint(len(versions), (len(rows),), generator=generator)
    pixels = torch.stack([versions[int(v)][int(r)] for v, r in zip(which, rows, strict=True)])
    x = to_signed(pixels)

    def chance(share: float) -> torch.Tensor:
        return (torch.rand(len(x), 1, 1, 1, generator=generator) < share).float()

    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, chance(0.3) * torch.rand(len(x), 1, 1, 1, generator=generator))
    x = x + chance(0.5) * torch.randn(x.shape, generator=generator) * 0.12 * torch.rand(len(x), 1, 1, 1, generator=generator)
    x = x * (1 + 0.1 * (torch.rand(len(x), 1, 1, 1, generator=generator) - 0.5))
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return x.roll(shift, dims=(2, 3))


def margin_softmax(first: torch.Tensor, second: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """Additive-margin softmax over the identities of a batch, both ways; unit embeddings (N, D) of two pictures of each.

    With thousands of identities and five pictures of each, weights for every identity hardly learn; other pictures of the batch
    take their place.
    """
    logits = scale * (first @ second.T - margin * torch.eye(len(first)))
    labels = torch.arange(len(first))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def fit_identity(judge: str, pictures: Pictures, versions: list[torch.Tensor], folder: Path) -> nn.Module:
    """An identity embedder. A batch holds identities of one class, half of the time people, so that classes do not give them away."""
    torch.manual_seed(SEEDS[judge])
    steps = IDENTITY_STEPS[judge]
    by_class: dict[str, list[int]] = {}
    for row in range(0, len(pictures.facts), SHOTS):
        by_class.setdefault(pictures.facts[row]["class"], []).append(row // SHOTS)
    nouns = [noun for noun in by_class if noun != EMPTY]
    chances = torch.tensor([3.0 if noun == "person" else 1.0 for noun in nouns])
    network = ENCODERS[judge]()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        members = torch.tensor(by_class[nouns[int(torch.multinomial(chances, 1, generator=generator))]])
        chosen = members[torch.randperm(len(members), generator=generator)[: BATCH // 2]]
        shots = torch.stack([torch.randperm(SHOTS, generator=generator)[:2] for _ in chosen])
        rows = (chosen[:, None] * SHOTS + shots).T.reshape(-1)
        with torch.autocast("cpu", torch.bfloat16):
            embedded = network(augment(versions, rows, generator))
        first, second = F.normalize(embedded.float(), dim=1).chunk(2)
        return margin_softmax(first, second, SCALE, MARGIN * min(1.0, 2 * step / steps))

    return train(judge, network, loss, folder, steps=steps, rate=RATE, seed=SEEDS[judge], weight_decay=0.05, average=0.995)


def fit_text_image(
    pictures: Pictures, versions: list[torch.Tensor], tokenizer: CLIPTokenizer, folder: Path, steps: int = TEXT_STEPS
) -> TextImage:
    """The text-image model. A pair is positive when every fact that the caption names is true of the picture."""
    torch.manual_seed(SEEDS["text-image"])
    model = TextImage(len(tokenizer))
    people = torch.tensor([1.0 if fact["class"] == "person" else 1.5 for fact in pictures.facts])

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        words = np.random.default_rng([SEEDS["text-image"], step])
        rows = torch.multinomial(people, BATCH, replacement=True, generator=generator)
        facts = [pictures.facts[row] for row in rows.tolist()]
        named = [captions.facts_to_name(fact, words) for fact in facts]
        texts = tokenizer([captions.write(fact, words) for fact in named], add_special_tokens=False).input_ids
        true = torch.tensor([[all(have.get(k) == v for k, v in want.items()) for want in named] for have in facts]).float()
        with torch.autocast("cpu", torch.bfloat16):
            embedded = model.image(augment(versions, rows, generator))
        logits = model.logits(F.normalize(embedded.float(), dim=1), model.embed_texts(texts))
        # Few pairs are true: weigh both kinds alike, so that log-odds do not lean to "no".
        weight = true * (true.numel() / 2 / true.sum()) + (1 - true) * (true.numel() / 2 / (1 - true).sum())
        return (F.binary_cross_entropy_with_logits(logits, true, reduction="none") * weight).mean()

    train("text-image", model, loss, folder, steps=steps, rate=RATE, seed=SEEDS["text-image"], weight_decay=0.01, average=0.995)
    return model
