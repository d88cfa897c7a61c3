"""Another word for the class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from persbench.contracts import Card, Language, PromptShift, Words
from persbench.errors import PersbenchError


@dataclass(frozen=True)
class OtherClassWordConfig:
    """`kind` of word, or the `word` itself; "": the language's first of that kind."""

    kind: Literal["synonym", "hypernym"] = "synonym"
    word: str = ""


class OtherClassWord(PromptShift):
    """The adversary calls the subject's class by a synonym, or by a wider word.

    Raises PersbenchError when the language has no such word for it.
    """

    Config: ClassVar[type] = OtherClassWordConfig
    card: ClassVar[Card] = Card("Class word mismatch", controls="the words of the personalization", knows="what the protector assumes")

    def shift(self, words: Words, language: Language) -> Words:
        noun, config = words.class_noun, self.config
        known = language.synonyms.get(noun, ()) if config.kind == "synonym" else (language.hypernyms.get(noun, ""),)
        other = config.word or next(iter(known), "")
        if other in ("", noun):
            raise PersbenchError(f"class-word shift: no other word ({config.kind}) for {noun!r}; give one with word")
        return replace(words, class_noun=other)
