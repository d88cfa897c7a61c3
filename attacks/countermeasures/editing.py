"""What the countermeasures share that work on 8-bit pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from persbench.pictures import to_levels


def edited(photos: torch.Tensor, edit: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Photos (N, 3, H, W) in [0, 1], each edited as the 8-bit RGB picture that it is on disk."""
    levels = to_levels(photos).permute(0, 2, 3, 1).cpu().numpy()
    found = np.stack([np.asarray(edit(Image.fromarray(picture)).convert("RGB")) for picture in levels])
    return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255


def stored(picture: Image.Image, **options: Any) -> Image.Image:
    """A picture after it was written to and read from a file; `options` are those of PIL's `save`."""
    file = io.BytesIO()
    picture.save(file, **options)
    return Image.open(file)
