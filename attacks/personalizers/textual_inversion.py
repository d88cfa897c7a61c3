"""Textual Inversion: new words for the subject, in a model that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from persbench.contracts import Card, Language, Words
from persbench.diffusion import DiffusionModel
from persbench.errors import PersbenchError

from .training import Adaptation, FineTuning, FineTuningConfig, train_tokens


@dataclass(frozen=True)
class TextualInversionConfig(FineTuningConfig):
    """Defaults of the example of diffusers, whose rate of 5e-4 is multiplied by its batch (`--scale_lr`)."""

    rate: float = 2e-3
    steps: int = 3000
    batch: int = 4
    vectors: int = 1  # words that stand for the subject


class TextualInversion(FineTuning):
    """The token embeddings of the identifier alone, from the class word's on.

    Unlike in the example of diffusers the words are rare ones that the tokenizer has, not added ones: weights keep their shapes. They
    stand before the class word, as in every other personalizer here, and the template does not vary.
    """

    Config: ClassVar[type] = TextualInversionConfig
    card: ClassVar[Card] = Card(
        "Textual Inversion",
        paper="Gal et al., An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
        venue="ICLR",
        year=2023,
        repository="rinongal/textual_inversion",
        controls="the token embeddings of the released model",
        knows="the published photos and the class of the subject",
    )

    def words(self, words: Words, language: Language) -> Words:
        """As many words as there are vectors: the identifier, then other ones of the language. Raises PersbenchError when they run out."""
        own = words.identifier.split()
        # Signs are tokens of their own, so that a word like "t@t" would be three, two of them the same.
        spare = [word for word in language.identifiers if word.isalpha() and word not in own]
        if not 1 <= self.config.vectors <= len(own) + len(spare):
            raise PersbenchError(f"vectors={self.config.vectors} must be between 1 and {len(own) + len(spare)}, the rare words there are")
        return replace(words, identifier=" ".join([*own, *spare[: max(self.config.vectors - len(own), 0)]]))

    def adapt(self, words: Words, model: DiffusionModel, rng: torch.Generator) -> Adaptation:
        tuned = model.clone("text_encoder")
        tokens = model.identifier_tokens(words.identifier, words.instance_prompt)
        noun = model.tokenizer(words.class_noun, add_special_tokens=False).input_ids[-1]
        vectors, merge = train_tokens(tuned, tokens, noun)
        return Adaptation(tuned, [vectors], merge)
