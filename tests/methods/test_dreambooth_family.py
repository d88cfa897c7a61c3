"""Protections that raise the DreamBooth loss: each rule against values computed by hand, and a run on tiny base models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from persbench.methods import metacloak
from persbench.methods.aspl import ASPL, ASPLConfig, alternate, targeted_loss
from persbench.methods.caat import CAAT, CAATConfig
from persbench.methods.disdiff import DisDiff, DisDiffConfig, attention_maps, erasure, merit, token_positions
from persbench.methods.fsmg import FSMG, FSMGConfig
from persbench.methods.metacloak import MetaCloak, MetaCloakConfig, gaussian_blur
from persbench.methods.pap import PAP, PAPConfig, laplace, prompt_agnostic_loss
from persbench.methods.simac import SimAC, SimACConfig, TimestepSearchConfig, feature_loss, greedy_timesteps
from torch import nn

from persbench import pictures
from persbench.contracts import Budget, Language, Subject, Words
from persbench.diffusion import DiffusionModel
from persbench.errors import PersbenchError

WORDS = Words("sks", "person")
LANGUAGE = Language(("sks", "t@t"), ("robot", "person"), (), "an empty scene")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scalar(nn.Module):
    """Multiplies by a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value), requires_grad=False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.weight * value


class Hand:
    """Latent = photo's first channel, noise 2 wherever, prediction = weight * noisy + text state: everything can be done by hand."""

    precision, device = "fp32", torch.device("cpu")

    def __init__(self, weight: float = 1.0, state: float = 0.0) -> None:
        self.unet, self.text_encoder, self.words = nn.Module(), Scalar(0.0), state
        self.unet.attn2 = nn.Module()
        self.unet.attn2.to_k = Scalar(weight)
        self.schedule = SimpleNamespace(
            config=SimpleNamespace(num_train_timesteps=10),
            step=lambda predicted, timestep, noisy, generator: SimpleNamespace(prev_sample=noisy - predicted),
        )
        self.noised_at: list[list[int]] = []

    @property
    def weight(self) -> torch.Tensor:
        return self.unet.attn2.to_k.weight

    def state(self):
        return {"unet.attn2.to_k.weight": self.weight, "text_encoder.weight": self.text_encoder.weight}

    def clone(self, *parts):
        return Hand(self.weight.item(), self.words)

    def encode(self, photos, rng=None):
        return photos[:, :1]

    def embed(self, prompts):
        return torch.full((len(prompts), 1, 1), self.words)

    def noise(self, shape, rng):
        return torch.full(tuple(shape), 2.0)

    def timesteps(self, count, rng):
        return torch.arange(count)

    def add_noise(self, latents, noise, timesteps):
        self.noised_at.append(timesteps.tolist())
        return latents + noise

    def target(self, latents, noise, timesteps):
        return noise

    def predict(self, noisy, timesteps, states):
        return self.unet.attn2.to_k(noisy) + states.view(-1, 1, 1, 1)

    def loss(self, latents, states, rng, timesteps=None):
        return (self.predict(latents + 2, timesteps, states) - 2).square().mean(dim=(1, 2, 3))


def photo(value: float, count: int = 1) -> torch.Tensor:
    return torch.full((count, 3, 1, 1), value)


def test_fsmg_climbs_the_loss_of_the_surrogate_that_has_learned() -> None:
    """At weight 1 the error 1 * (1/2 + 2) - 0.45 - 2 is 0.05, and grows with the photo; one step of AdamW makes the weight 0.899 and the
    error negative, so that the photo has to go down."""
    subject = Subject("ada", photo(0.5), WORDS, LANGUAGE)
    base = Hand(1.0, -0.45)
    for surrogate_steps, moved in ((0, 0.6), (1, 0.4)):
        config = FSMGConfig(8.0, 1, 8.0, surrogate_rate=0.1, prior_weight=0.0, train_text_encoder=False, surrogate_steps=surrogate_steps)
        found = FSMG(config).perturb(subject, base, 0.1, generator())
        assert found[0, 0].item() == pytest.approx(moved)
    assert base.weight.item() == 1.0


class Diary:
    """A surrogate that writes down what is asked of it; its weight is the sum of what it learned."""

    def __init__(self) -> None:
        self.weight, self.did = 0.0, []

    def restart(self):
        self.did.append("restart")

    def snapshot(self):
        return [torch.tensor(self.weight)]

    def restore(self, snapshot):
        self.weight = snapshot[0].item()
        self.did.append("restore")

    def train(self, photos, steps, rng):
        self.weight += photos.mean().item() * steps
        self.did.append(f"train {photos.mean().item():.2f}")


@pytest.mark.parametrize("forget_clean", [True, False])
def test_alternation_of_surrogate_and_perturbation(forget_clean: bool) -> None:
    diary, seen = Diary(), []

    def attack(surrogate, photos):
        seen.append((surrogate.weight, photos.mean().item()))
        return photos - 0.5 - 0.25 * len(seen) if len(seen) == 1 else photos

    clean = photo(1.0)
    config = ASPLConfig(rounds=2, surrogate_steps=3)
    found = alternate([diary], clean, config, attack, None, "", forget_clean)
    # The first attack makes photos of 0.25; three steps on them add 0.75.
    assert found.mean().item() == 0.25
    assert seen[0] == (3.0, 1.0)
    assert seen[1] == ((0.75 + 3 if forget_clean else 3 + 0.75 + 3), 0.25)
    assert diary.did[:4] == ["restart", "train 1.00", "restore" if forget_clean else "restart", "train 0.25"]


def test_ensemble_is_the_mean_over_surrogates_that_learn_their_own() -> None:
    diaries = [Diary(), Diary()]
    found = alternate(
        diaries,
        photo(0.5),
        ASPLConfig(rounds=1, surrogate_steps=1),
        lambda surrogate, photos: photos + (0.2 if surrogate is diaries[0] else -0.4),
        None,
        "",
    )
    assert found.mean().item() == pytest.approx(0.4)
    assert [diary.did[-1] for diary in diaries] == ["train 0.70", "train 0.10"]


def test_targeted_loss_by_hand() -> None:
    """Photo 0: noisy 2, predicted 3 * 2 + 1 = 7, error 5; denoised 2 - 7 = -5, the target 1 noised is 3, distance 8: 25 - 64."""
    model = Hand(3.0)
    found = targeted_loss(model, torch.ones(1, 1, 1), photo(1.0), generator())(photo(0.0, count=2), 0)
    assert found.item() == 25 - 64
    assert model.noised_at == [[0, 1], [0, 0]]  # the target a timestep earlier, but not before the first


def test_timestep_search_drops_the_neighbourhood_of_the_weakest() -> None:
    """Gradients of photo 0 grow with the timestep (0 and 1 go first, then 2, 3, ...), those of photo 1 shrink."""
    seen = []

    def loss(latents, states, rng, timesteps):
        seen.append(latents.detach().flatten(1)[:, 0])
        return latents.mean(dim=(1, 2, 3)) * torch.stack([timesteps[0] + 1.0, 10.0 - timesteps[1]])

    model = Hand()
    model.loss = loss
    config = TimestepSearchConfig(search_candidates=60, search_window=1, search_keep=4)
    kept = greedy_timesteps(model, torch.zeros(1, 1, 1), photo(0.5, count=2), config, 0.3, 0.1, generator())
    assert [row.nonzero().flatten().tolist() for row in kept] == [[6, 7, 8, 9], [0, 1, 2, 3]]
    assert seen[-1].tolist() == pytest.approx([0.8, 0.8])  # a step of 0.1 each time, up to the budget
    with pytest.raises(PersbenchError, match="search_window=3"):
        greedy_timesteps(
            model, torch.zeros(1, 1, 1), photo(0.5), TimestepSearchConfig(search_window=3, search_keep=5), 0.1, 0.1, generator()
        )


def test_feature_loss_by_hand() -> None:
    """Photo 1 and clean photo 0, noise 2: residual branches 2 z and 3 z differ by 2 and 3; the prediction is 5 z, and true is 2."""
    model = Hand()
    blocks = [SimpleNamespace(conv2=Scalar(2.0)), SimpleNamespace(conv2=Scalar(3.0))]
    model.unet = SimpleNamespace(up_blocks=[SimpleNamespace(resnets=[]), SimpleNamespace(resnets=blocks)])
    model.predict = lambda noisy, timesteps, states: blocks[0].conv2(noisy) + blocks[1].conv2(noisy)
    kept = torch.zeros(1, 10, dtype=torch.bool)
    kept[0, 7] = True
    shown = photo(1.0).requires_grad_(True)
    for weight, value, slope in ((0.0, 13.0**2, 2 * 13 * 5), (2.0, 13.0**2 + 2 * 6.5, 2 * 13 * 5 + 2 * 2 * 6.5)):
        found = feature_loss(model, torch.zeros(1, 1, 1), photo(0.0), kept, weight, generator())(shown, 0)
        assert found.item() == value
        assert torch.autograd.grad(found, shown)[0][0, 0].item() == pytest.approx(slope)
    assert all(times == [7] for times in model.noised_at)
    assert not blocks[0].conv2._forward_hooks


def test_steps_of_disdiff_shrink_towards_noise() -> None:
    assert merit(torch.tensor([0, 1, 2]), 3).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_erasure_of_the_identifier_by_hand() -> None:
    """A mean lead of ln(3) / 100 makes 3/4 of the softmax and 9/10 of the energy: (1 - 9/10)^2. Other sizes and tokens do not count."""
    lead = math.log(3) / 100
    maps = [
        torch.tensor([[[0.9, 2 * lead, 0.0, 0.5]], [[0.1, 0.0, 0.0, 0.5]]]),  # two heads, one cell: a quarter of four a side
        torch.rand(2, 16, 4, generator=generator()),
    ]
    assert erasure(maps, 4, [1, 2], [1]).item() == pytest.approx(0.01, rel=1e-4)
    assert erasure(maps, 4, [1, 2], [2]).item() == pytest.approx(0.81, rel=1e-4)


def test_attention_maps_by_hand() -> None:
    attention = nn.Module()
    attention.to_q, attention.to_k, attention.scale, attention.head_to_batch_dim = Scalar(1.0), Scalar(2.0), 0.5, lambda value: value
    unet = nn.Module()
    unet.attn2 = attention
    with attention_maps(unet) as maps:
        attention.to_q(torch.tensor([[[1.0], [0.0]]]))
        attention.to_k(torch.tensor([[[math.log(3)], [0.0]]]))
    assert maps[0].flatten().tolist() == pytest.approx([0.75, 0.25, 0.5, 0.5])
    assert not attention.to_q._forward_hooks and not attention.to_k._forward_hooks


def test_attention_maps_and_tokens_of_a_real_model(tiny_base) -> None:
    model = DiffusionModel.load(tiny_base)
    assert token_positions(model, WORDS) == ([1, 2, 3, 4, 5], [4])
    with torch.no_grad(), attention_maps(model.unet) as maps:
        model.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), model.embed([WORDS.instance_prompt]))
    assert maps and all(torch.allclose(found.sum(dim=-1), torch.ones(())) for found in maps)
    attention = next(module for name, module in model.unet.named_modules() if name.endswith("attn2"))
    given = {}
    hook = attention.register_forward_hook(
        lambda module, inputs, kwargs, output: given.update(hidden=inputs[0], **kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), model.embed([WORDS.instance_prompt]))
        query = attention.head_to_batch_dim(attention.to_q(given["hidden"]))
        key = attention.head_to_batch_dim(attention.to_k(given["encoder_hidden_states"]))
    hook.remove()
    assert torch.allclose(maps[0], attention.get_attention_scores(query, key), atol=1e-6)


def test_caat_moves_photo_and_keys_against_each_other() -> None:
    """Error 1 * (1/2 + 2) - 0.4 - 2 = 0.1: the photo goes up by the step, the weight down by the rate, from the same evaluation."""
    seen = []
    base = Hand(1.0, -0.4)

    class Watched(Hand):
        def loss(self, latents, states, rng, timesteps=None):
            seen.append((round(latents.item(), 4), round(self.weight.item(), 4)))
            return super().loss(latents, states, rng, timesteps)

    base.clone = lambda *parts: Watched(1.0, -0.4)
    found = CAAT(CAATConfig(8.0, 2, 4.0, surrogate_rate=0.05)).perturb(Subject("ada", photo(0.5), WORDS, LANGUAGE), base, 0.1, generator())
    assert seen == [(0.5, 1.0), (0.55, 0.9495)]  # and there the error is 0.0212: up again
    assert found[0, 0].item() == pytest.approx(0.6)
    assert not found.requires_grad and base.weight.item() == 1.0


def test_blur_by_hand() -> None:
    spot = torch.zeros(1, 3, 5, 5)
    spot[..., 2, 2] = 1
    side = math.exp(-0.5)
    found = gaussian_blur(spot, 3, 1.0)[0, 1]
    assert found[2, 2].item() == pytest.approx(1 / (1 + 2 * side) ** 2)
    assert found[2, 1].item() == pytest.approx(side / (1 + 2 * side) ** 2)
    assert found[1, 1].item() == pytest.approx(side**2 / (1 + 2 * side) ** 2)
    assert found[0].sum().item() == 0
    assert torch.allclose(gaussian_blur(torch.full((1, 3, 4, 4), 0.3), 3, 0.7), torch.tensor(0.3))


def test_metacloak_goes_on_from_each_stage_of_learning(monkeypatch) -> None:
    diary, attacked = Diary(), []
    diary.model, diary.states = Hand(), lambda: None
    monkeypatch.setattr(metacloak.Surrogate, "dreambooth", lambda *_: diary)

    def ascend(objective, photos, **how):
        attacked.append((diary.weight, photos.mean().item(), len(how["views"]), how["steps"], how["step"]))
        return photos - 0.25

    monkeypatch.setattr(metacloak, "ascend", ascend)
    config = MetaCloakConfig(trials=2, pool_steps=8, interval=4, advance_steps=2, samples=3)
    MetaCloak(config).perturb(Subject("ada", photo(1.0), WORDS, LANGUAGE), None, 11 / 255, None)
    # The pool: 0, 4 and 8 steps on photos of 1. From each two attacks; between them two steps on the photos of 0.75, then 0.25, ...
    assert [weight for weight, *_ in attacked[:6]] == [0, 1.5, 4, 4.5, 8, 8 - 0.5]
    assert [weight for weight, *_ in attacked[6::2]] == [0, 4, 8]
    assert [shown for _, shown, *_ in attacked] == [1 - 0.25 * i for i in range(12)]
    assert all(how == [3, 6, pytest.approx(1.1 / 255)] for _, _, *how in attacked)


def test_metacloak_wants_an_odd_blur() -> None:
    with pytest.raises(PersbenchError, match="odd"):
        MetaCloak(MetaCloakConfig(blur_kernel=4)).perturb(None, None, 0.1, generator())


def test_laplace_draw_by_hand() -> None:
    """Losses c^2: from 2 a step of 1/4 on the mean over two rows (gradient c) leads to 3/2; the fall is 7/4 and v is 1/4 / (2 * 7/4)."""
    states = torch.full((2, 1, 1), 2.0)
    found = laplace(lambda prompt: prompt.square().mean(dim=(1, 2)), states, 1, 0.25, generator(4))
    drawn = torch.randn((2, 1, 1), generator=generator(4))
    assert torch.allclose(found, 1.5 + math.sqrt(1 / 14) * drawn)
    assert torch.equal(laplace(lambda prompt: prompt.square().mean(dim=(1, 2)), states, 0, 0.25, generator(4)), states)


def test_prompt_agnostic_loss_by_hand() -> None:
    """The best prompt at rate 1/2 makes up for the whole error: from state 0, error 1 + 2 - 2 = 1, to state -1. Drawn around it with
    v = 1 / (2 * 1), the error is the draw itself and the gradient twice that."""
    model, shown = Hand(), photo(1.0).requires_grad_(True)
    found = prompt_agnostic_loss(model, torch.zeros(1, 1, 1), 1, 0.5, generator(4))(shown, 0)
    error = math.sqrt(0.5) * torch.randn((1, 1, 1), generator=generator(4)).item()
    assert found.item() == pytest.approx(error**2)
    assert torch.autograd.grad(found, shown)[0][0, 0].item() == pytest.approx(2 * error)


SURROGATE = {"surrogate_rate": 1e-3, "class_pictures": 1, "class_inference_steps": 2}
ROUNDS = {"rounds": 2, "steps": 2, "surrogate_steps": 1}
SEARCH = {"search_candidates": 2, "search_window": 200, "search_keep": 400}
SHORT = {
    "fsmg": FSMG(FSMGConfig(steps=2, surrogate_steps=2, **SURROGATE)),
    "aspl": ASPL(ASPLConfig(**SURROGATE, **ROUNDS)),
    "simac": SimAC(SimACConfig(**SURROGATE, **ROUNDS, **SEARCH)),
    "metacloak": MetaCloak(MetaCloakConfig(steps=1, trials=1, pool_steps=2, interval=2, advance_steps=1, blur_kernel=3, **SURROGATE)),
    "caat": CAAT(CAATConfig(steps=2)),
    "disdiff": DisDiff(DisDiffConfig(**SURROGATE, **ROUNDS, **SEARCH)),
    "pap": PAP(PAPConfig(steps=2, prompt_steps=2)),
}


def run(method, base: DiffusionModel, photos: torch.Tensor, levels: float) -> torch.Tensor:
    return method.protect([Subject("ada", photos, WORDS, LANGUAGE)], base, Budget(levels), generator()).photos["ada"]


@pytest.mark.parametrize("name", SHORT)
def test_run_on_a_tiny_model(name: str, tiny_base) -> None:
    base, method = DiffusionModel.load(tiny_base), SHORT[name]
    before = {key: weight.clone() for key, weight in base.state().items()}
    photos = pictures.to_levels(torch.rand(2, 3, 32, 32, generator=generator())).float() / 255
    given, seed = photos.clone(), torch.get_rng_state()
    found = run(method, base, photos, 6.4)
    change = pictures.to_levels(found).int() - pictures.to_levels(photos).int()
    assert 1 <= change.abs().max() <= 6
    assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad
    assert torch.equal(photos, given) and torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(weight, before[key]) and not weight.requires_grad for key, weight in base.state().items())


def test_aspl_again_towards_a_target_and_against_two_models(tiny_epsilon, tmp_path) -> None:
    base = DiffusionModel.load(tiny_epsilon)
    photos = pictures.to_levels(torch.rand(2, 3, 32, 32, generator=generator())).float() / 255
    pictures.save(torch.zeros(1, 3, 40, 50), tmp_path, "target")
    plain = run(SHORT["aspl"], base, photos, 8.0)
    assert torch.equal(run(SHORT["aspl"], base, photos, 8.0), plain)
    targeted = run(ASPL(ASPLConfig(target=str(tmp_path / "target-000.png"), **SURROGATE, **ROUNDS)), base, photos, 8.0)
    ensemble = run(ASPL(ASPLConfig(ensemble=(str(tiny_epsilon),), **SURROGATE, **ROUNDS)), base, photos, 8.0)
    for found in (targeted, ensemble):
        assert 0 < (found - photos).abs().max() <= 8 / 255 + 1e-6
        assert not torch.equal(found, plain)
