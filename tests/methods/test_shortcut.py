"""The shortcut: what is personalized on what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from persbench.methods import shortcut
from persbench.methods.shortcut import Shortcut, start
from torch import nn

from persbench.contracts import Budget, Language, Subject, Words
from persbench.diffusion import DiffusionModel

LANGUAGE = Language(("sks",), ("robot", "person"), ("at the beach",), "an empty scene")
SUBJECT = Subject("ada", torch.zeros(1, 3, 8, 8), Words("sks", "person"), LANGUAGE)


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_dreambooth_binds_the_instance_prompt_to_another_class_and_preserves_its_own(monkeypatch, weight) -> None:
    seen: list = []

    def pool(prompts, places, base, count, share, rng):
        assert (places, share) == ((), 0.0)
        return SimpleNamespace(latents={noun: torch.full((count, 1, 1, 1), float(noun == "robot")) for noun in prompts})

    monkeypatch.setattr(shortcut, "teacher_pool", pool)
    monkeypatch.setattr(shortcut, "weighted", lambda found, *_: seen.extend(found))
    monkeypatch.setattr(shortcut, "finetune", lambda parameters, loss, **_: loss(0))
    base = SimpleNamespace(clone=lambda *_: SimpleNamespace(unet=nn.Linear(1, 1)), precision="fp32")
    Shortcut(Shortcut.Config(batch=3, prior_weight=weight)).protect([SUBJECT], base, Budget(), torch.Generator().manual_seed(0))
    found = [(share, samples.prompts, samples.latents.flatten().tolist()) for share, samples in seen]
    backdoor = (1.0, ["a photo of sks person"] * 3, [1.0] * 3)
    assert found == [backdoor, (0.5, ["a photo of a person"] * 3, [0.0] * 3)][: 1 + bool(weight)]
    assert all(samples.teacher_prompts is None for _, samples in seen)  # the true noise


def test_textual_inversion_starts_at_the_other_class_word(tiny_epsilon) -> None:
    model = DiffusionModel.load(tiny_epsilon).clone("text_encoder")
    before = model.text_encoder.get_input_embeddings().weight.clone()
    start(model, "sks", "robot")
    after = model.text_encoder.get_input_embeddings().weight
    (sks,), (robot,) = (model.tokenizer(word, add_special_tokens=False).input_ids for word in ("sks", "robot"))
    assert torch.equal(after[sks], before[robot])
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == [sks]
