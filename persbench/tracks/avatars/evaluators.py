"""The judges of the `avatars` track: two identity embedders of different architecture, and a text-image model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from persbench.tracks.base import Evaluators

JUDGES = ("resnet", "convnext")
CLASSES = ("person", "robot", "monster", "planet", "nothing")
EMBEDDING = 128


class _Residual(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.GroupNorm(8, width),
        )
        self.skip = nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.body(x) + self.skip(x))


def resnet(outputs: int = EMBEDDING) -> nn.Module:
    """Residual convolutional encoder: (N, 3, 64, 64) in [-1, 1] to (N, outputs)."""
    widths = (32, 64, 96, 160)
    blocks: list[nn.Module] = [nn.Conv2d(3, 32, 5, 2, 2)]
    for width_in, width in zip((32, *widths), widths, strict=False):
        blocks.append(_Residual(width_in, width, 1 if width == 32 else 2))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], outputs))


class _ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen, self.narrow = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(3 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(self.spatial(x)))))


def convnext(outputs: int = EMBEDDING) -> nn.Module:
    """Patch-based encoder with large depthwise kernels: (N, 3, 64, 64) in [-1, 1] to (N, outputs)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 4),
        nn.GroupNorm(1, 64),
        *(_ConvNeXtBlock(64) for _ in range(3)),
        nn.Conv2d(64, 128, 2, 2),
        nn.GroupNorm(1, 128),
        *(_ConvNeXtBlock(128) for _ in range(3)),
        nn.GroupNorm(1, 128),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, outputs),
    )


ENCODERS = {"resnet": resnet, "convnext": convnext}


class TextImage(nn.Module):
    """Pictures and captions in one space; the logit of a pair says whether the caption is true of the picture."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.image = resnet()
        self.words = nn.Embedding(vocabulary, EMBEDDING)
        # Neighbours matter: "red hair on a blue background" is not "blue hair on a red background".
        self.phrases = nn.Conv1d(EMBEDDING, 256, 3, padding=1)
        self.text = nn.Linear(256, EMBEDDING)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def embed_texts(self, captions: list[list[int]]) -> torch.Tensor:
        """Unit vectors (N, D) of captions given as token ids."""
        length = max(len(caption) for caption in captions)
        ids = torch.tensor([caption + [0] * (length - len(caption)) for caption in captions])
        real = torch.tensor([[1.0] * len(caption) + [0.0] * (length - len(caption)) for caption in captions]).unsqueeze(1)
        phrases = F.gelu(self.phrases(self.words(ids).transpose(1, 2) * real)) * real
        return F.normalize(self.text(phrases.sum(dim=2)), dim=1)

    def embed_pictures(self, signed: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N, D) of pictures in [-1, 1]."""
        return F.normalize(self.image(signed), dim=1)

    def logits(self, pictures: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Log-odds (N, M) that text m is true of picture n, from unit vectors."""
        return self.scale.exp() * pictures @ texts.T + self.bias


class AvatarEvaluators(Evaluators):
    """The trained judges from the files of the track."""

    judges = JUDGES
    classes = CLASSES

    def __init__(self, weights: Path, tokenizer: Path) -> None:
        from safetensors.torch import load_file
        from transformers import CLIPTokenizer

        self.tokenize = partial(CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True), add_special_tokens=False)
        self.networks: dict[str, nn.Module] = {judge: ENCODERS[judge]() for judge in JUDGES}
        state = load_file(weights / "text-image.safetensors")
        self.networks["text-image"] = TextImage(len(state["words.weight"]))
        for name, network in self.networks.items():
            stored = load_file(weights / f"{name}.safetensors")
            network.load_state_dict({key: value.float() for key, value in stored.items()})
            network.requires_grad_(False).eval()

    @torch.no_grad()
    def identity(self, judge: str, pictures: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.normalize(self.networks[judge](part * 2 - 1), dim=1) for part in pictures.split(64)])

    def _texts(self, prompts: tuple[str, ...]) -> torch.Tensor:
        network = self.networks["text-image"]
        assert isinstance(network, TextImage)
        return network.embed_texts(self.tokenize(list(prompts)).input_ids)

    @torch.no_grad()
    def _logits(self, pictures: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
        network = self.networks["text-image"]
        assert isinstance(network, TextImage)
        embedded = torch.cat([network.embed_pictures(part * 2 - 1) for part in pictures.split(64)])
        return network.logits(embedded, self._texts(prompts))

    def match(self, pictures: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
        return self._logits(pictures, prompts).diagonal().sigmoid()

    def class_probabilities(self, pictures: torch.Tensor) -> torch.Tensor:
        texts = tuple("a photo of an empty scene" if noun == "nothing" else f"a photo of a {noun}" for noun in CLASSES)
        return self._logits(pictures, texts).softmax(dim=1)

    def best_of(self, pictures: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
        """Index (N,) of the prompt that fits each picture best."""
        return self._logits(pictures, prompts).argmax(dim=1)
