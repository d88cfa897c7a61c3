from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from persbench.attacks.personalizers import training
from persbench.attacks.personalizers.custom_diffusion import CustomDiffusion, CustomDiffusionConfig
from persbench.attacks.personalizers.dreambooth import DreamBooth, DreamBoothConfig
from persbench.attacks.personalizers.ip_adapter import IPAdapter
from persbench.attacks.personalizers.lora import TARGETS, TEXT_TARGETS, Lora, LoraConfig
from persbench.attacks.personalizers.svdiff import SpectralShift, SVDiff, SVDiffConfig
from persbench.attacks.personalizers.textual_inversion import TextualInversion, TextualInversionConfig
from persbench.attacks.personalizers.training import Examples, denoising_loss

from persbench.contracts import Words
from persbench.errors import PersbenchError

PHOTOS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
WORDS = Words("sks", "person")
TABLE = "token_embedding.weight"
SHORT = {"steps": 2, "rate": 1e-2, "batch": 2}
ALL = {
    "lora": Lora(LoraConfig(**SHORT, targets="all")),
    "lora with text encoder": Lora(LoraConfig(**SHORT, text_encoder=True)),
    "dreambooth": DreamBooth(DreamBoothConfig(**SHORT)),
    "dreambooth with text encoder": DreamBooth(DreamBoothConfig(**SHORT, text_encoder=True)),
    "textual-inversion": TextualInversion(TextualInversionConfig(**SHORT, vectors=2)),
    "custom-diffusion": CustomDiffusion(CustomDiffusionConfig(**SHORT)),
    "svdiff": SVDiff(SVDiffConfig(**SHORT, gradient_checkpointing=True)),
}


def tune(personalizer, adversary, seed: int = 0):
    words = personalizer.words(WORDS, adversary.language)
    return personalizer.personalize(PHOTOS, words, adversary.public, adversary, torch.Generator().manual_seed(seed))


def tokens(model, words: str) -> list[int]:
    return model.tokenizer(words, add_special_tokens=False).input_ids


def changed_rows(tuned, base) -> list[int]:
    now, before = (model.text_encoder.get_input_embeddings().weight for model in (tuned, base))
    return (now != before).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("personalizer", ALL.values(), ids=ALL)
def test_all_randomness_is_the_generators_and_the_given_model_stays(adversary, personalizer) -> None:
    before = {name: tensor.clone() for name, tensor in adversary.public.state().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = tune(personalizer, adversary)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in adversary.public.state().items())
    torch.manual_seed(99)
    assert not tune(personalizer, adversary).difference(first)
    assert tune(personalizer, adversary, seed=1).difference(first)
    assert not any(tensor.requires_grad for part in ("unet", "text_encoder", "vae") for tensor in getattr(first, part).parameters())


def test_lora_changes_its_targets_by_low_rank_and_nothing_else(adversary) -> None:
    base = adversary.public
    changed = tune(Lora(LoraConfig(rank=2, steps=3, rate=1e-2)), adversary).difference(base)
    assert changed
    state = base.state()
    for name, tensor in changed.items():
        assert any(f".{target}." in name for target in TARGETS["attention"]), name
        rank = torch.linalg.matrix_rank(tensor - state[name], rtol=1e-3)
        assert rank <= 2, name


def test_lora_adapts_the_attention_of_the_text_encoder_if_told(adversary) -> None:
    changed = tune(ALL["lora with text encoder"], adversary).difference(adversary.public)
    text = {name for name in changed if name.startswith("text_encoder.")}
    assert {name.split(".")[-2] for name in text} == set(TEXT_TARGETS)
    assert len(changed) > len(text)


def test_dreambooth_changes_the_whole_denoiser_and_the_text_encoder_only_if_told(adversary) -> None:
    def names(key: str, part: str) -> set[str]:
        changed = tune(ALL[key], adversary).difference(adversary.public)
        assert not any(name.startswith("vae.") for name in changed)
        return {name for name in changed if name.startswith(part)}

    whole = {name for name in adversary.public.state() if name.startswith("unet.")}
    assert names("dreambooth", "unet.") == whole
    assert not names("dreambooth", "text_encoder.")
    assert any("mlp.fc1" in name for name in names("dreambooth with text encoder", "text_encoder."))


def test_textual_inversion_changes_the_rows_of_its_words_alone(adversary) -> None:
    base = adversary.public
    tuned = tune(ALL["textual-inversion"], adversary)
    (name,) = tuned.difference(base)
    assert name.endswith(TABLE)
    assert changed_rows(tuned, base) == sorted(tokens(base, "sks xxy"))


def test_textual_inversion_starts_from_the_embedding_of_the_class_word(adversary) -> None:
    base = adversary.public
    untrained = TextualInversion(TextualInversionConfig(steps=0, vectors=2))
    table = tune(untrained, adversary).text_encoder.get_input_embeddings().weight
    for token in tokens(base, "sks xxy"):
        assert torch.equal(table[token], table[tokens(base, "person")[0]])
    assert torch.equal(table[tokens(base, "olis")], base.text_encoder.get_input_embeddings().weight[tokens(base, "olis")])


def test_words_of_textual_inversion_are_rare_and_of_one_token_each(adversary) -> None:
    words = TextualInversion(TextualInversionConfig(vectors=5)).words(replace(WORDS, identifier="zwx"), adversary.language)
    assert words.identifier == "zwx sks xxy ohwx hta"
    assert len(adversary.public.identifier_tokens(words.identifier, words.instance_prompt)) == 5
    assert TextualInversion().words(WORDS, adversary.language) == WORDS
    for vectors in (0, 500):
        with pytest.raises(PersbenchError, match="vectors"):
            TextualInversion(TextualInversionConfig(vectors=vectors)).words(WORDS, adversary.language)


def test_custom_diffusion_changes_keys_and_values_of_cross_attention_and_one_word(adversary) -> None:
    base = adversary.public
    tuned = tune(ALL["custom-diffusion"], adversary)
    changed = tuned.difference(base)
    wanted = {name for name in base.state() if ".attn2.to_k." in name or ".attn2.to_v." in name}
    assert {name for name in changed if not name.endswith(TABLE)} == wanted
    assert len(wanted) == 8
    assert changed_rows(tuned, base) == tokens(base, "sks")


def test_svdiff_keeps_singular_vectors(adversary) -> None:
    base = adversary.public
    changed = tune(ALL["svdiff"], adversary).difference(base)
    state = base.state()
    assert {name for name in changed if not name.startswith("unet.")} == set()
    assert "unet.conv_in.weight" in changed
    assert not any(name.endswith("bias") for name in changed)
    for name, tensor in changed.items():
        left, values, right = torch.linalg.svd(state[name].flatten(1), full_matrices=False)
        seen = left.T @ tensor.flatten(1) @ right.T
        assert (seen - seen.diag().diag()).abs().max() < 1e-4, name
        assert (seen.diag() - values).abs().max() > 1e-3, name


def test_spectral_shift_by_hand() -> None:
    shift = SpectralShift(torch.diag(torch.tensor([3.0, 1.0])))
    weight = torch.diag(torch.tensor([3.0, 1.0]))
    assert torch.equal(shift(weight), weight)
    with torch.no_grad():
        shift.shift.copy_(torch.tensor([0.5, -4.0]))
    torch.testing.assert_close(shift(weight), torch.diag(torch.tensor([3.5, 0.0])))  # 1 - 4 is cut off at 0


@pytest.mark.parametrize("key", ["lora with text encoder", "textual-inversion", "custom-diffusion", "svdiff"])
def test_merged_weights_predict_what_the_model_in_training_did(adversary, monkeypatch, key) -> None:
    personalizer, before = ALL[key], {}
    words = personalizer.words(WORDS, adversary.language)
    noisy, timesteps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2)), torch.tensor([300])

    def adapt(*given):
        adaptation = type(personalizer).adapt(personalizer, *given)

        def merge() -> None:
            before["was"] = adaptation.model.predict(noisy, timesteps, adaptation.model.embed([words.instance_prompt]))
            adaptation.merge()

        return replace(adaptation, merge=merge)

    monkeypatch.setattr(personalizer, "adapt", adapt)
    tuned = tune(personalizer, adversary)
    now = tuned.predict(noisy, timesteps, tuned.embed([words.instance_prompt]))
    torch.testing.assert_close(now, before["was"], rtol=1e-4, atol=1e-5)
    base = adversary.public
    assert not torch.allclose(now, base.predict(noisy, timesteps, base.embed([words.instance_prompt])), rtol=1e-4, atol=1e-4)


def test_prior_preservation_by_hand(adversary, monkeypatch) -> None:
    base = adversary.public
    seen = []

    def loss(latents, states, rng):
        seen.append((latents, states))
        return torch.arange(len(latents)).float() ** 2  # 0, 1, 4 of the photos, 9, 16, 25 of the class

    monkeypatch.setattr(base, "loss", loss)
    examples = [Examples(torch.zeros(2, 4, 1, 1), "a", 1.0), Examples(torch.ones(5, 4, 1, 1), "b", 0.5)]
    states = torch.tensor([7.0, 8.0]).view(2, 1, 1)
    value = denoising_loss(base, examples, states, 3, torch.Generator().manual_seed(0))
    assert value.item() == pytest.approx(5 / 3 + 0.5 * 50 / 3)
    latents, conditions = seen[0]
    assert latents[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert conditions.flatten().tolist() == [7, 7, 7, 8, 8, 8]


def test_class_pictures_are_encoded_once_under_the_class_prompt(adversary, monkeypatch) -> None:
    asked, prompts = [], []
    real = training.denoising_loss

    def spy(model, examples, states, batch, rng):
        prompts.append([(each.prompt, each.weight, len(each.latents)) for each in examples])
        return real(model, examples, states, batch, rng)

    monkeypatch.setattr(training, "denoising_loss", spy)
    given = replace(adversary, class_pictures=lambda noun: asked.append(noun) or adversary.class_pictures(noun))
    for weight, wanted in ((0.7, ["person"]), (0.0, ["person"])):
        tune(DreamBooth(DreamBoothConfig(**SHORT, prior_weight=weight)), given)
        assert asked == wanted
    both = [("a photo of sks person", 1.0, 4), ("a photo of a person", 0.7, 2)]
    assert prompts == [both, both, both[:1], both[:1]]


def test_ip_adapter_says_why_it_is_missing(tiny_epsilon) -> None:
    assert "image encoder" in IPAdapter().missing(tiny_epsilon)
    assert not Lora().missing(tiny_epsilon)
