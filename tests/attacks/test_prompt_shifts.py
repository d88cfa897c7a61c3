"""Prompt shifts: which words they choose, and what happens when there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from persbench import registry
from persbench.contracts import Language, Words
from persbench.errors import PersbenchError
from persbench.tracks.avatars import Avatars

LANGUAGE = Language(
    ("sks", "t@t", "xxy"),
    ("person", "planet"),
    ("at the beach",),
    "an empty scene",
    ("a photo of {}", "a picture of {}", "{}"),
    synonyms={"person": ("human", "face")},
    hypernyms={"person": "character"},
)
WORDS = Words("sks", "person")


def shifted(name: str, words: Words = WORDS, language: Language = LANGUAGE, **options: str) -> Words:
    return registry.configure(name, registry.load("prompt_shifts", name), options).shift(words, language)


def test_identifier_is_the_next_one_or_the_one_named() -> None:
    assert shifted("identifier") == replace(WORDS, identifier="t@t")
    assert shifted("identifier", Words("t@t", "person")).identifier == "sks"
    assert shifted("identifier", identifier="olis").identifier == "olis"


def test_class_word_is_a_synonym_a_hypernym_or_the_one_named() -> None:
    assert shifted("class-word") == replace(WORDS, class_noun="human")
    assert shifted("class-word", kind="hypernym").class_noun == "character"
    assert shifted("class-word", word="face").class_noun == "face"


def test_template_is_another_sentence() -> None:
    assert shifted("template") == replace(WORDS, template="a picture of {}")
    assert shifted("template", Words("sks", "person", "a picture of {}")).template == "a photo of {}"
    assert shifted("template", template="{}").instance_prompt == "sks person"


def test_all_is_the_three_shifts_together() -> None:
    assert shifted("all") == Words("t@t", "human", "a picture of {}")
    assert shifted("all", identifier="xxy", kind="hypernym", template="{}") == Words("xxy", "character", "{}")


@pytest.mark.parametrize(
    ("name", "options", "language", "message"),
    [
        ("identifier", {"identifier": "sks"}, LANGUAGE, "nothing but 'sks'"),
        ("identifier", {}, replace(LANGUAGE, identifiers=("sks",)), "give another identifier"),
        ("class-word", {"word": "person"}, LANGUAGE, "no other word"),
        ("class-word", {}, replace(LANGUAGE, synonyms={}), "synonym.*for 'person'"),
        ("class-word", {"kind": "hypernym"}, replace(LANGUAGE, hypernyms={}), "hypernym"),
        ("class-word", {"kind": "antonym"}, LANGUAGE, "option kind of class-word"),
        ("template", {"template": "a photo"}, LANGUAGE, "give another template"),
        ("template", {"template": "a photo of {}"}, LANGUAGE, "give another template"),
        ("template", {}, replace(LANGUAGE, templates=LANGUAGE.templates[:1]), "give another template"),
    ],
)
def test_a_shift_to_nothing_is_an_error_that_says_what_to_give(name, options, language, message) -> None:
    with pytest.raises(PersbenchError, match=message):
        shifted(name, language=language, **options)


def test_the_embedded_track_has_another_word_for_everything() -> None:
    for noun in Avatars.language.class_nouns:
        words = Words(Avatars.protocol.identifier, noun, Avatars.protocol.template)
        for kind in ("synonym", "hypernym"):
            found = shifted("all", words, Avatars.language, kind=kind)
            assert found.identifier != words.identifier and found.class_noun != noun and found.template != words.template
