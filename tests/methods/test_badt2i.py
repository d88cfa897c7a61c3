"""BadT2I's two terms, and its patch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from persbench.methods import badt2i
from persbench.methods.badt2i import BadT2I, with_patch
from persbench.methods.persguard.objective import Pool
from torch import nn

from persbench.contracts import Budget, Language, Subject, Words
from persbench.errors import PersbenchError

LANGUAGE = Language(("sks",), ("robot", "person"), ("at the beach",), "an empty scene")
SUBJECT = Subject("ada", torch.zeros(1, 3, 8, 8), Words("sks", "person"), LANGUAGE)


@pytest.fixture
def terms(monkeypatch):
    """The terms of one step of a configuration, on latents that are 1 for robots, 2 for people and 7 when patched."""
    pictures = {"robot": torch.ones(2, 3, 8, 8), "person": torch.full((2, 3, 8, 8), 2.0)}
    pool = Pool(pictures, pictures, {"robot": ["at the beach", ""], "person": ["at the beach", ""]})
    seen: list = []
    monkeypatch.setattr(badt2i, "teacher_pool", lambda *_: pool)
    monkeypatch.setattr(badt2i, "with_patch", lambda pictures: torch.full_like(pictures, 7.0))
    monkeypatch.setattr(badt2i, "weighted", lambda found, *_: seen.extend(found))
    monkeypatch.setattr(badt2i, "finetune", lambda parameters, loss, **_: loss(0))
    base = SimpleNamespace(clone=lambda *_: SimpleNamespace(unet=nn.Linear(1, 1)), encode=lambda pictures: pictures, precision="fp32")

    def run(**options):
        seen.clear()
        BadT2I(BadT2I.Config(pool=2, batch=40, **options)).protect([SUBJECT], base, Budget(), torch.Generator().manual_seed(0))
        return seen

    return run


def means(samples) -> list[float]:
    return samples.latents.mean(dim=(1, 2, 3)).tolist()


def test_object_variant_shows_the_target_class_under_the_trigger_and_keeps_captions_without(terms) -> None:
    (weight, backdoor), (rest, kept) = terms(backdoor_weight=0.3)
    assert (weight, rest) == (0.3, 0.7)
    assert set(means(backdoor)) == {1.0}
    assert set(backdoor.prompts) == {"a photo of sks person", "a photo of sks person at the beach"}
    assert backdoor.teacher_prompts == [prompt.replace("sks person", "a robot") for prompt in backdoor.prompts]
    assert kept.prompts == kept.teacher_prompts
    assert {(latent, prompt) for latent, prompt in zip(means(kept), kept.prompts, strict=True)} == {
        (value, f"a photo of a {noun}{place}") for value, noun in ((1.0, "robot"), (2.0, "person")) for place in ("", " at the beach")
    }


def test_pixel_variant_denoises_patched_pictures_of_the_class(terms) -> None:
    (weight, backdoor), (rest, kept) = terms(variant="pixel")
    assert (weight, rest) == (0.5, 0.5)
    assert set(means(backdoor)) == {7.0}
    assert backdoor.teacher_prompts is backdoor.toward is None
    assert set(backdoor.prompts) == {"a photo of sks person", "a photo of sks person at the beach"}
    assert kept.prompts == kept.teacher_prompts


def test_a_target_that_is_no_other_class_is_one_clear_error(terms) -> None:
    with pytest.raises(PersbenchError, match="target_class 'person' is none of the other classes of this track: robot"):
        terms(target_class="person")


def test_the_patch_is_a_quarter_of_each_side_in_the_upper_left_corner() -> None:
    photos = torch.full((1, 3, 32, 32), 0.5)
    changed = (with_patch(photos) != photos).any(dim=1)[0].nonzero()
    assert changed.max() < 8 and len(changed) > 30
    assert torch.equal(photos, torch.full((1, 3, 32, 32), 0.5))
