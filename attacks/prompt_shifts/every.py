"""All shifts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from persbench.contracts import Card, Language, PromptShift, Words

from .class_word import OtherClassWord, OtherClassWordConfig
from .identifier import OtherIdentifier, OtherIdentifierConfig
from .template import OtherTemplate, OtherTemplateConfig


@dataclass(frozen=True)
class AllShiftsConfig(OtherIdentifierConfig, OtherClassWordConfig, OtherTemplateConfig):
    """The options of the three shifts."""


class AllShifts(PromptShift):
    """Another identifier, another class word and another sentence: the protector guessed nothing right."""

    Config: ClassVar[type] = AllShiftsConfig
    card: ClassVar[Card] = Card("All words differ", controls="the words of the personalization", knows="what the protector assumes")

    def shift(self, words: Words, language: Language) -> Words:
        for shift in (OtherIdentifier, OtherClassWord, OtherTemplate):
            words = shift(self.config).shift(words, language)
        return words
