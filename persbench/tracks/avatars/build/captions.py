"""Captions of the pictures and the vocabulary that they need.

Rare words (identifiers such as `sks`) occur in training captions as noise that means nothing. Without that, the text encoder
would never have seen them, and "a photo of sks person" would be the same prompt to it as "a photo of a person".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .draw import BACKGROUND_COLOURS, BACKGROUNDS, CLASSES, EMPTY, EXPRESSIONS, HAIR_COLOURS, SCENES

LENGTH = 24  # tokens, with start and end
IDENTIFIERS = ("sks t@t xxy zwx ohwx hta olis shs pll vky qxz wth bnha mjk gsd rvt kfp lzu ucd nwq pqv dbx tzr yhg cjb ekw ixo afj").split()
TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a portrait of {}",
    "{}",
)
SYNONYMS = {
    "person": ("person", "human", "face"),
    "robot": ("robot", "android", "machine"),
    "monster": ("monster", "creature", "beast"),
    "planet": ("planet", "world", "globe"),
}
HYPERNYMS = {"person": "character", "robot": "character", "monster": "character", "planet": "object"}
PLACES = {
    "beach": "at the beach",
    "forest": "in the forest",
    "city": "in the city",
    "mountains": "in the mountains",
    "space": "in space",
    "room": "in a room",
}
# Words of prompts that no caption uses: they get tokens, so that a longer sentence is not cut into letters.
OTHER_WORDS = "the of with and on one cool nice good close up painting sketch style scene empty nothing but just".split()


def place(background: str) -> str:
    """The words for a background: "on a red background", "at the beach"."""
    return PLACES.get(background) or f"on {article(background)} {background} background"


def article(word: str) -> str:
    """ "an" before a vowel, else "a"."""
    return "an" if word[0] in "aeiou" else "a"


def subject_phrase(noun: str, identifier: str = "", expression: str = "") -> str:
    """ "a smiling person", or "sks person" with an identifier, as DreamBooth prompts are written."""
    words = " ".join(word for word in (identifier, expression, noun) if word)
    return words if identifier else f"{article(words)} {words}"


def facts_to_name(facts: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """A random part of the facts of a picture; its class is always among them."""
    chances = {"expression": 0.5, "hair": 0.5, "background": 0.75}
    return {name: fact for name, fact in facts.items() if name == "class" or rng.uniform() < chances[name]}


def write(named: dict[str, str], rng: np.random.Generator) -> str:
    """A caption that says the named facts, in random words."""
    noun = named["class"]
    where = named.get("background", "")
    if noun == EMPTY:
        return empty_scene(where)
    chance = rng.uniform()
    word = str(rng.choice(SYNONYMS[noun])) if chance < 0.2 else HYPERNYMS[noun] if chance < 0.24 else noun
    identifier = str(rng.choice(IDENTIFIERS)) if rng.uniform() < 0.3 else ""
    text = subject_phrase(word, identifier, named.get("expression", ""))
    if "hair" in named:
        text += f" with {named['hair']} hair"
    if where:
        text += f" {place(where)}"
    template = TEMPLATES[0] if rng.uniform() < 0.5 else str(rng.choice(TEMPLATES))
    return template.format(text)


def caption(facts: dict[str, str], rng: np.random.Generator) -> str:
    """A training caption that names a random part of the facts."""
    return write(facts_to_name(facts, rng), rng)


def empty_scene(background: str = "") -> str:
    """A caption of a background with nobody before it."""
    return f"a photo of an empty scene {place(background) if background else ''}".rstrip()


def vocabulary() -> list[str]:
    """Every word that has a token of its own."""
    texts = [template.format("") for template in TEMPLATES]
    texts += [place(background) for background in BACKGROUNDS] + list(CLASSES)
    texts += [word for words in SYNONYMS.values() for word in words] + list(HYPERNYMS.values())
    texts += list(EXPRESSIONS) + list(HAIR_COLOURS) + ["hair"] + list(IDENTIFIERS) + list(OTHER_WORDS)
    return sorted({word for text in texts for word in text.split()} | set(BACKGROUND_COLOURS) | set(SCENES))


def save_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer (byte-pair merges that give each word of the vocabulary one token) as a transformers folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    words = [word for word in vocabulary() if word.isalpha()]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=letters
    )
    model.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
