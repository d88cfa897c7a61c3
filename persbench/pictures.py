"""Pictures on disk: 8-bit PNG in, 8-bit PNG out. Whatever is attacked or scored has gone through here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from persbench.errors import PersbenchError


def to_levels(pictures: torch.Tensor) -> torch.Tensor:
    """[0, 1] floats to uint8, as they are written."""
    return (pictures.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def save(pictures: torch.Tensor, folder: Path, prefix: str) -> None:
    """Write (N, 3, H, W) in [0, 1] as `prefix-000.png`, ..."""
    for number, levels in enumerate(to_levels(pictures).permute(0, 2, 3, 1).cpu().numpy()):
        Image.fromarray(levels).save(folder / f"{prefix}-{number:03d}.png")


def read(paths: Sequence[Path], size: int | None = None) -> torch.Tensor:
    """(N, 3, H, W) float in [0, 1] of picture files; with `size`, cropped to the middle square and resized to that side.

    Raises PersbenchError naming a file that cannot be read.
    """
    found = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise PersbenchError(f"photo {path} cannot be read: {error}") from None
        if size is not None and picture.size != (size, size):
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            picture = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
        found.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    if not found:
        raise PersbenchError("no photos given")
    if len({picture.shape for picture in found}) > 1:
        raise PersbenchError(f"photos beside {paths[0]} have different sizes")
    return torch.stack(found).float() / 255


def sheet(rows: Sequence[torch.Tensor], path: Path, scale: int = 2, gap: int = 4) -> None:
    """A contact sheet: each (N, 3, H, W) is a row, enlarged `scale` times."""
    side = max(row.shape[-1] for row in rows) * scale
    width = max(len(row) for row in rows) * (side + gap) + gap
    canvas = Image.new("RGB", (width, len(rows) * (side + gap) + gap), "white")
    for y, row in enumerate(rows):
        for x, levels in enumerate(to_levels(row).permute(0, 2, 3, 1).cpu().numpy()):
            picture = Image.fromarray(levels).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (gap + x * (side + gap), gap + y * (side + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
