"""Plug-ins of another package, as a third party would write them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace

import torch

from persbench.contracts import Card, Countermeasure, Method, Metric, Personalizer, PromptShift, Release, Tamper, rows_of


@dataclass(frozen=True)
class StripesConfig:
    """`width` of the stripes in pixels."""

    width: int = 2
    budget_levels: float = 8.0


class Stripes(Method):
    """Bright and dark stripes over the photos."""

    Config = StripesConfig
    card = Card("Stripes", paper="tests of persbench", year=2026, controls="the published photos", knows="nothing")
    changes = frozenset({"photos"})

    def protect(self, subjects, base, budget, rng):
        def striped(photos):
            rows = torch.arange(photos.shape[-2]) // self.config.width % 2 * 2.0 - 1
            return (photos + rows.view(1, 1, -1, 1) * budget.levels / 255).clamp(0, 1)

        return Release(photos={subject.name: striped(subject.photos) for subject in subjects})


class Raises(Method):
    """A defense with a bug."""

    card = Card("Raises")
    changes = frozenset({"photos"})

    def protect(self, subjects, base, budget, rng):
        raise RuntimeError("out of luck")


class Darken(Countermeasure):
    """Half as bright."""

    card = Card("Darken")

    def apply(self, photos, adversary, rng):
        return photos / 2


class Halve(Tamper):
    """Half of every weight of the denoiser, and half of the training steps."""

    card = Card("Halve")

    def tamper(self, model, adversary, rng):
        assert len(adversary.clean_photos) == 0
        halved = model.clone("unet")
        with torch.no_grad():
            for weight in halved.unet.parameters():
                weight.mul_(0.5)
        return halved

    def train(self, config):
        return replace(config, steps=config.steps // 2)


class Paint(Personalizer):
    """Needs what no base model here has."""

    card = Card("Paint")

    def missing(self, base):
        return "it paints with oil"

    def personalize(self, photos, words, model, adversary, rng):
        return model


class OtherName(PromptShift):
    """The adversary calls the subject by another rare word."""

    card = Card("Other identifier")

    def shift(self, words, language):
        return replace(words, identifier=next(name for name in language.identifiers if name != words.identifier))


class Brightness(Metric):
    """Mean brightness of what the adversary gets."""

    card = Card("Brightness")
    higher_is_better = {"brightness": True}

    def measure(self, evidence, evaluators):
        return rows_of("brightness", "attacked", evidence.sets["attacked"].pictures.mean(dim=(1, 2, 3)))


class Hangs(Method):
    """A defense that never ends."""

    card = Card("Hangs")
    changes = frozenset({"photos"})

    def protect(self, subjects, base, budget, rng):
        time.sleep(600)


class Dies(Method):
    """A defense that takes its process along."""

    card = Card("Dies")
    changes = frozenset({"photos"})

    def protect(self, subjects, base, budget, rng):
        os.kill(os.getpid(), signal.SIGKILL)
