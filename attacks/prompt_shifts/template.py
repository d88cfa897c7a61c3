"""Another sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from persbench.contracts import Card, Language, PromptShift, Words
from persbench.errors import PersbenchError


@dataclass(frozen=True)
class OtherTemplateConfig:
    """`template`: a sentence with {} where the subject stands; "": the language's first that the protector does not assume."""

    template: str = ""


class OtherTemplate(PromptShift):
    """The adversary trains with another sentence around the identifier and the class than the protector assumed.

    Raises PersbenchError when that is the assumed one or has no place for the subject, or when the language has no other.
    """

    Config: ClassVar[type] = OtherTemplateConfig
    card: ClassVar[Card] = Card(
        "Prompt mismatch",
        paper="Van Le et al., Anti-DreamBooth: Protecting Users from Personalized Text-to-image Synthesis",
        venue="ICCV",
        year=2023,
        repository="VinAIResearch/Anti-DreamBooth",
        controls="the words of the personalization",
        knows="what the protector assumes",
    )

    def shift(self, words: Words, language: Language) -> Words:
        others = (self.config.template,) if self.config.template else language.templates
        other = next((template for template in others if template != words.template), "")
        if other.count("{}") != 1:
            raise PersbenchError(f"template shift: {other!r} is no other sentence with one {{}}; give another template")
        return replace(words, template=other)
