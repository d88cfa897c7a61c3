"""Another identifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from persbench.contracts import Card, Language, PromptShift, Words
from persbench.errors import PersbenchError


@dataclass(frozen=True)
class OtherIdentifierConfig:
    """`identifier`: the one to use; "": the language's first that the protector does not assume."""

    identifier: str = ""


class OtherIdentifier(PromptShift):
    """The adversary trains and prompts with another rare token than the protector assumed.

    Raises PersbenchError when that is the assumed one, or the language has no other.
    """

    Config: ClassVar[type] = OtherIdentifierConfig
    card: ClassVar[Card] = Card(
        "Identifier mismatch",
        paper="Van Le et al., Anti-DreamBooth: Protecting Users from Personalized Text-to-image Synthesis",
        venue="ICCV",
        year=2023,
        repository="VinAIResearch/Anti-DreamBooth",
        controls="the words of the personalization",
        knows="what the protector assumes",
    )

    def shift(self, words: Words, language: Language) -> Words:
        others = (self.config.identifier,) if self.config.identifier else language.identifiers
        other = next((identifier for identifier in others if identifier != words.identifier), None)
        if other is None:
            raise PersbenchError(f"identifier shift: there is nothing but {words.identifier!r}; give another identifier")
        return replace(words, identifier=other)
