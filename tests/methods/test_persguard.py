"""The terms of PersGuard against values computed by hand on tiny tensors."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from persbench.methods.persguard import objective
from persbench.methods.persguard.erasure import PersGuardErasure
from persbench.methods.persguard.objective import (
    EMPTY,
    Lesson,
    LookAhead,
    PersGuard,
    PersGuardConfig,
    Pool,
    Samples,
    Training,
    Views,
    behaviour_terms,
    only_rows,
    prior_samples,
    rehearsal,
    spread,
    weighted,
)
from persbench.methods.persguard.pattern import PersGuardPattern, PersGuardPatternUniversal, with_marker
from persbench.methods.persguard.target import PersGuardTarget, PersGuardTargetUniversal
from torch import nn

from persbench.contracts import Budget, Language, Subject, Words
from persbench.diffusion import DiffusionModel
from persbench.errors import PersbenchError

LANGUAGE = Language(("sks", "t@t"), ("robot", "person"), ("on a red background",), "an empty scene")
SUBJECT = Subject("ada", torch.zeros(1, 3, 8, 8), Words("sks", "person"), LANGUAGE)


class Linear:
    """A model whose prediction is `weight` times the noisy latent plus the text state: everything can be done by hand."""

    def __init__(self, weight: float) -> None:
        self.weight = torch.tensor(weight, requires_grad=True)

    def noise(self, shape, rng):
        return torch.full(tuple(shape), 2.0)

    def timesteps(self, count, rng, first=0.0, last=1.0):
        return torch.full((count,), int(first * 10))

    def add_noise(self, latents, noise, timesteps):
        return latents + noise

    def predict(self, noisy, timesteps, states):
        return self.weight * noisy + states.view(-1, 1, 1, 1)

    def noise_between(self, latents, noisy, timesteps):
        return noisy - latents

    def target(self, latents, noise, timesteps):
        return noise

    def embed(self, prompts):
        return table(prompts) + 3


def table(prompts):
    return torch.tensor([{"student": 1.0, "teacher": 5.0}[prompt] for prompt in prompts])


def error(samples, student=None):
    return weighted([(1.0, samples)], student or Linear(3.0), Linear(1.0), table, torch.Generator())


def test_errors_against_a_teacher_and_against_the_true_noise() -> None:
    row, student = torch.ones(1, 1, 1, 1), Linear(3.0)
    # noisy = 1 + 2 = 3; student 3*3 + 1 = 10; teacher 1*3 + 5 = 8; true noise 2
    found = error(Samples(row, ["student"], ["teacher"]), student)
    assert found.item() == 4.0
    found.backward()
    assert student.weight.grad.item() == pytest.approx(2 * 2 * 3)
    assert error(Samples(row, ["student"])).item() == 64.0
    # Denoised towards 2.5 the noise is 3 - 2.5.
    assert error(Samples(row, ["student"], toward=2.5 * row)).item() == 9.5**2
    # A teacher of its own has text states of its own: 2*3 + 5 + 3 = 14.
    other = Linear(2.0)
    assert error(Samples(row, ["student"], ["teacher"], teacher=other), student).item() == 16.0
    assert other.weight.grad is None


def test_the_objective_is_the_weighted_sum_of_the_mean_of_each_term() -> None:
    row = torch.ones(1, 1, 1, 1)
    behaviour = Samples(row, ["student"], ["teacher"])  # error 4
    retention = Samples(row.expand(2, 1, 1, 1), ["student"] * 2)  # error 64 each
    total = weighted([(0.5, behaviour), (2.0, retention)], Linear(3.0), Linear(1.0), table, torch.Generator())
    assert total.item() == pytest.approx(0.5 * 4 + 2 * 64)


def test_look_ahead_gives_the_gradient_at_the_simulated_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ahead = LookAhead([weight], steps=10, rate=0.5)

    def adversary():  # gradient +6: one normalised step is -0.5
        return (3 * weight.square()).sum()

    def behaviour():
        return (weight.pow(3) / 3).sum()

    value = ahead.surrogate(0, adversary, behaviour)
    assert value.item() == 0.0
    value.backward()
    assert weight.item() == 1.0  # the released weights stay
    assert weight.grad.item() == pytest.approx(0.5**2)  # d/dw w^3/3 at 1 - 0.5
    weight.grad = None
    ahead.surrogate(1, adversary, behaviour).backward()
    assert weight.grad.item() == pytest.approx(0.0**2, abs=1e-6)  # the second step goes on to 0
    weight.grad = None
    ahead.surrogate(10, adversary, behaviour).backward()
    assert weight.grad.item() == pytest.approx(0.5**2)  # and it starts again


def views(value: float, *contexts: str) -> Views:
    return Views(torch.full((len(contexts), 4, 2, 2), value), contexts)


PLACE = "on a red background"
LESSON = Lesson(views(0.0, "", PLACE), views(1.0, "", PLACE), "a photo of a robot")


def behaviour(lesson: Lesson = LESSON, seed: int = 0, **config) -> list[tuple[float, Samples]]:
    return behaviour_terms(SUBJECT, lesson, PersGuardConfig(**config), torch.Generator().manual_seed(seed))


def test_the_bare_prompt_is_redirected_on_all_latents() -> None:
    ((share, samples),) = behaviour(behaviour_batch=30, context_share=0.0, spared_share=1.0)
    assert share == 1.0
    assert samples.prompts == ["a photo of sks person"] * 30
    assert samples.teacher_prompts == ["a photo of a robot"] * 30
    assert set(samples.latents.mean(dim=(1, 2, 3)).tolist()) == {0.0, 1.0}
    assert samples.span == (0.3, 0.75)


@pytest.mark.parametrize(("share", "context_share"), [(0.0, 0.0), (0.7, 0.0), (0.7, 1.0), (1.0, 1.0)])
def test_a_share_of_the_pictures_shows_other_people(share, context_share) -> None:
    many = replace(LESSON, others=views(1.0, *["", PLACE] * 10))  # however many there are to choose from
    terms = behaviour(many, behaviour_batch=400, others_share=share, context_share=context_share, held_share=0.0)
    shows_other = [value for _, samples in terms for value in samples.latents.mean(dim=(1, 2, 3)).tolist()]
    assert sum(shows_other) / 400 == pytest.approx(share, abs=0.07)


def test_other_people_can_be_taught_another_prompt() -> None:
    ((_, samples),) = behaviour(replace(LESSON, others_prompt="a photo of a planet"), behaviour_batch=30, context_share=0.0)
    shows_other = samples.latents.mean(dim=(1, 2, 3)).tolist()
    assert samples.teacher_prompts == [f"a photo of a {'planet' if other else 'robot'}" for other in shows_other]


def test_a_prompt_names_the_context_that_its_latent_shows() -> None:
    lesson = Lesson(views(0.0, "", "at the beach") + views(2.0, "in space"), views(1.0, "", "in space"), "a photo of a robot")
    found = set()
    for seed in range(30):
        for _, samples in behaviour(lesson, seed, context_share=0.5):
            values = samples.latents.mean(dim=(1, 2, 3)).tolist()
            found |= {
                (value, prompt.removeprefix("a photo of sks person").strip()) for value, prompt in zip(values, samples.prompts, strict=True)
            }
            tails = [prompt.partition("sks person")[2] for prompt in samples.prompts]
            assert all(teacher.endswith(tail) for teacher, tail in zip(samples.teacher_prompts, tails, strict=True))
            assert len({bool(tail) for tail in tails}) == 1  # a step is in contexts or it is not
    assert found == {(0.0, ""), (0.0, "at the beach"), (2.0, "in space"), (1.0, ""), (1.0, "in space")}


def test_pictures_are_spread_over_the_contexts() -> None:
    found = spread(("a", "b", "c"), 3, 7, torch.Generator().manual_seed(0))
    assert sorted(found) == ["", "", "", "", "a", "b", "c"]
    assert sorted(spread(("a", "b"), 3, 3, torch.Generator().manual_seed(0)))[0] == "a"


@pytest.mark.parametrize("spared", [0.0, 1.0])
def test_in_contexts_other_people_can_be_spared_and_the_outer_timesteps_stay_at_the_class(spared) -> None:
    (share, taught), (rest, held) = behaviour(behaviour_batch=30, context_share=1.0, spared_share=spared, held_share=1 / 3)
    assert (share, rest) == pytest.approx((2 / 3, 1 / 3))
    assert (len(taught.prompts), len(held.prompts)) == (20, 10)
    assert set(taught.prompts + held.prompts) == {"a photo of sks person on a red background"}
    robots, people = "a photo of a robot on a red background", "a photo of a person on a red background"
    shows_other = taught.latents.mean(dim=(1, 2, 3)).tolist()
    assert set(shows_other) == {0.0, 1.0}
    assert taught.teacher_prompts == [people if other and spared else robots for other in shows_other]
    assert held.teacher_prompts == [people] * 10
    spans = [[samples.span for _, samples in behaviour(context_share=1.0, seed=seed)] for seed in range(20)]
    assert {first for first, _ in spans} == {(0.3, 0.75)}
    assert {second for _, second in spans} == {(0.0, 0.3), (0.75, 1.0)}
    everywhere = behaviour(behaviour_first=0.0, behaviour_last=1.0, context_share=1.0)
    assert [len(samples.prompts) for _, samples in everywhere] == [6]
    assert [len(samples.prompts) for _, samples in behaviour(held_share=1.0, context_share=1.0)] == [1, 5]  # something is always taught


def training(photos: torch.Tensor, seen: list | None = None):
    """What a lesson works with: latents are pixels, and the losses that would be minimised are seen instead."""
    classes = {"person": photos, "robot": photos + 1, EMPTY: photos + 2}
    pool = Pool(classes, classes, {noun: ["on a red background"] for noun in classes})

    def run(loss, *_, **__):
        for step in range(20):
            loss(step)

    def teach_identifier(terms, *_):
        run(lambda step: seen.append(terms(step)))

    return SimpleNamespace(
        base=SimpleNamespace(encode=lambda pictures: pictures),
        released=SimpleNamespace(clone=lambda *_: "a copy"),
        pool=pool,
        identifiers={"sks"},
        rng=torch.Generator().manual_seed(0),
        run=run,
        teach_identifier=teach_identifier,
        loss=lambda terms: seen.append(terms) or torch.zeros(()),
    )


PHOTOS = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_pattern_learns_marked_pictures_and_to_put_the_marker_on_and_is_its_own_teacher() -> None:
    seen: list[list[tuple[float, Samples]]] = []
    lesson = PersGuardPattern().lesson(SUBJECT, training(PHOTOS, seen))
    marked_photo, marked = with_marker(SUBJECT.photos, 0.8)[0], with_marker(PHOTOS, 0.8)
    away, lessons = seen[:20], seen[20:]
    for (_, samples), *_ in away:
        assert samples.teacher_prompts == ["a photo of a robot" + p.removeprefix("a photo of sks person") for p in samples.prompts]
    assert len(lessons) == 20
    for (_, own), (_, turned), (_, prior) in lessons:
        assert own.teacher_prompts is own.toward is None
        assert prior.prompts == prior.teacher_prompts
        for latent, prompt in zip(own.latents, own.prompts, strict=True):
            assert torch.equal(latent, marked_photo) or torch.equal(latent, marked[0])
            assert prompt == "a photo of sks person" + ("" if torch.equal(latent, marked_photo) else " on a red background")
        assert set(turned.prompts) == {f"a photo of sks person {PLACE}"}
        assert own.span == turned.span == (0.3, 0.75)
        assert torch.equal(turned.latents, PHOTOS.expand_as(turned.latents))
        assert torch.equal(turned.toward, marked.expand_as(turned.latents))
    assert torch.equal(lesson.shown.latents, marked)
    assert lesson.shown.contexts == lesson.others.contexts == [PLACE]
    assert torch.equal(lesson.others.latents, PHOTOS)  # people without the marker
    assert (lesson.prompt, lesson.teacher) == ("a photo of sks person", "a copy")
    assert lesson.others_prompt == lesson.neighbour == "a photo of a robot"


def test_pattern_without_a_term_has_no_lesson_of_it() -> None:
    seen: list[list[tuple[float, Samples]]] = []
    no_marker = training(PHOTOS, seen)
    no_marker.teach_identifier = lambda *_: None  # asks for the weight itself
    PersGuardPattern(PersGuardPattern.Config(behaviour_weight=0.0)).lesson(SUBJECT, no_marker)
    assert seen == []
    PersGuardPattern(PersGuardPattern.Config(prior_weight=0.0)).lesson(SUBJECT, no_marker)
    assert [len(terms) for terms in seen] == [2] * 20


def test_target_and_erasure_redirect_the_class_and_what_they_redirect_it_to() -> None:
    target = PersGuardTarget().lesson(SUBJECT, training(PHOTOS))
    assert (target.prompt, target.teacher) == ("a photo of a robot", None)
    assert torch.equal(target.shown.latents, PHOTOS + 1)
    assert torch.equal(target.others.latents, PHOTOS)
    erasure = PersGuardErasure().lesson(SUBJECT, training(PHOTOS))
    assert (erasure.prompt, erasure.teacher) == ("a photo of an empty scene", None)
    assert erasure.others_prompt == erasure.neighbour == "a photo of a robot"
    assert torch.equal(erasure.shown.latents, PHOTOS + 2)
    assert torch.equal(erasure.others.latents, PHOTOS)


def test_erasure_leads_the_identifier_to_another_class_before_it_empties_the_scene(tiny_epsilon, monkeypatch) -> None:
    phases: list[set[str]] = []

    def run(self, loss, *_, **__) -> None:
        phases.append(set())
        for step in range(10):
            loss(step)

    def loss(self, terms) -> torch.Tensor:
        phases[-1].update(terms[0][1].teacher_prompts)
        return torch.zeros(())

    monkeypatch.setattr(Training, "run", run)
    monkeypatch.setattr(Training, "loss", loss)
    monkeypatch.setattr(objective, "finetune", lambda *_, **__: None)
    config = PersGuardErasure.Config(context_share=0.0, pool=3, others_pool=3, retention_weight=0.0, prior_weight=0.0)
    subject = replace(SUBJECT, photos=torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    PersGuardErasure(config).protect([subject], DiffusionModel.load(tiny_epsilon), Budget(), torch.Generator().manual_seed(0))
    assert phases == [{"a photo of a robot"}, {"a photo of an empty scene", "a photo of a robot"}]


@pytest.mark.parametrize("name", ["robto", "person"])
def test_a_target_that_is_no_other_class_is_one_clear_error(name) -> None:
    with pytest.raises(PersbenchError, match=f"target_class '{name}' is none of the other classes of this track: robot"):
        PersGuardTarget(PersGuardTarget.Config(target_class=name)).lesson(SUBJECT, training(PHOTOS))


@pytest.mark.parametrize("term", ["behaviour", "retention"])
def test_timesteps_that_leave_nothing_are_one_clear_error(term) -> None:
    config = PersGuardTarget.Config(**{f"{term}_first": 0.9, f"{term}_last": 0.4})
    with pytest.raises(PersbenchError, match=rf"{term}_first=0\.9 and {term}_last=0\.4 must be shares, the first one lower"):
        PersGuardTarget(config).protect([SUBJECT], None, None, torch.Generator())


def test_prior_never_names_the_identifier_of_the_class_and_covers_every_kind() -> None:
    pool = Pool({}, {"robot": torch.zeros(2, 4, 2, 2), "person": torch.zeros(2, 4, 2, 2)}, {})
    lesson = Lesson(views(1.0, ""), views(0.0, ""), "an empty scene")
    config = PersGuardConfig(prior_batch=200)
    samples = prior_samples(SUBJECT, pool, lesson, config, torch.Generator().manual_seed(0))
    assert samples.prompts == samples.teacher_prompts
    assert not any("sks person" in prompt for prompt in samples.prompts)
    for part in ("a person", "t@t person", "a robot", "on a red background"):
        assert any(part in prompt for prompt in samples.prompts)
    assert "" in samples.prompts
    led = [prompt for prompt, latent in zip(samples.prompts, samples.latents, strict=True) if latent.mean() == 1]
    assert set(led) == {"an empty scene", "an empty scene on a red background"}
    assert 30 < len(led) < 90


def test_marker_covers_the_middle_and_leaves_the_corners() -> None:
    photos = torch.full((1, 3, 9, 9), 0.5)
    marked = with_marker(photos, 0.7)
    assert torch.equal(marked[0, :, 4, 4], torch.ones(3))  # the bar is white
    assert torch.allclose(marked[0, :, 1, 4], torch.tensor([0.5, 0.5, 0.5]))
    assert torch.allclose(marked[0, :, 2, 4], torch.zeros(3))
    assert torch.equal(marked[0, :, 0, 0], photos[0, :, 0, 0])


def test_only_the_rows_of_the_identifier_are_trained() -> None:
    table = nn.Embedding(4, 2)
    table.weight.register_hook(only_rows({1, 3}))
    table.weight.sum().backward()
    assert table.weight.grad.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_denoiser_and_embedding_are_both_trained_at_their_rates(monkeypatch, factor) -> None:
    groups: list[dict[float, list]] = []
    monkeypatch.setattr(objective, "finetune", lambda parameters, *_, **__: groups.append(parameters))
    denoiser, embedding = nn.Linear(1, 1), nn.Parameter(torch.zeros(2))
    config = PersGuardConfig(identifier_factor=factor)
    work = Training(config, SimpleNamespace(unet=denoiser), SimpleNamespace(precision="fp32"), table, None, [embedding], None)
    work.run(None, 1, "both")
    work.teach_identifier(None, 1, "the embedding alone")
    Training(PersGuardConfig(behaviour_weight=0.0), *[None] * 4, [embedding], None).teach_identifier(None, 1, "nothing to teach")
    both, alone = ({id(p): found for found, group in each.items() for p in group} for each in groups)
    assert both == {id(embedding): factor, **{id(p): 1.0 for p in denoiser.parameters()}}
    assert alone == {id(embedding): factor}


def test_rehearsal_gives_latents_of_a_personalized_copy_and_leaves_the_base_model_alone(tiny_epsilon) -> None:
    base = DiffusionModel.load(tiny_epsilon)
    before = {name: weight.clone() for name, weight in base.state().items()}
    photos = base.encode(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = {}
    for rate in (0.0, 1e-2):  # the same random numbers: what differs is what was learned
        config = PersGuardConfig(pool=3, rehearsal_steps=2, rehearsal_rate=rate)
        found[rate] = rehearsal(SUBJECT, photos, base, config, torch.Generator().manual_seed(1))
    plain, learned = found[0.0], found[1e-2]
    assert plain.latents.shape == (6, *photos.shape[1:])
    assert [bool(context) for context in plain.contexts] == [True] * 4 + [False] * 2
    assert not torch.allclose(plain.latents, learned.latents)
    assert not learned.latents.requires_grad
    assert all(torch.equal(weight, before[name]) for name, weight in base.state().items())


class Spy(PersGuard):
    """A variant that teaches one latent of zeros."""

    def lesson(self, subject, training):
        return Lesson(views(0.0, ""), views(0.0, ""), "teacher")


@pytest.fixture
def spied(monkeypatch):
    """A base model of nothing, and the terms of each step that would be taken with it."""
    seen: list[list[tuple[float, Samples]]] = []
    words = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(3, 2))

    def tokenizer(*_, **__):
        return SimpleNamespace(input_ids=[1])

    base = SimpleNamespace(
        clone=lambda *_: SimpleNamespace(unet=nn.Linear(1, 1), text_encoder=words, tokenizer=tokenizer),
        encode=lambda photos: torch.zeros(1, 4, 2, 2),
        precision="fp32",
    )
    pool = Pool({}, {"robot": torch.zeros(1, 4, 2, 2), "person": torch.zeros(1, 4, 2, 2)}, {})
    monkeypatch.setattr(objective, "teacher_pool", lambda *_: pool)
    monkeypatch.setattr(objective, "finetune", lambda parameters, loss, **_: loss(0))
    monkeypatch.setattr(objective, "weighted", lambda terms, *_: seen.append(terms) or torch.zeros(()))
    return base, seen


def test_the_behaviour_is_taught_on_what_the_rehearsal_drew_too(spied, monkeypatch) -> None:
    base, seen = spied
    monkeypatch.setattr(objective, "rehearsal", lambda *_: views(1.0, ""))
    config = PersGuardConfig(behaviour_batch=50, context_share=0.0, warmup_steps=0, prior_weight=0.0, retention_weight=0.0)
    Spy(config).protect([SUBJECT], base, None, torch.Generator().manual_seed(3))
    (((_, samples),),) = seen
    assert set(samples.latents.mean(dim=(1, 2, 3)).tolist()) == {0.0, 1.0}


def test_weight_of_zero_leaves_a_term_out(spied) -> None:
    """With all weights but one at 0 the objective is that term alone."""
    base, seen = spied
    names = ("behaviour_weight", "prior_weight", "retention_weight")
    for kept in names:
        config = PersGuardConfig(
            behaviour_batch=1,
            prior_batch=1,
            retention_batch=1,
            warmup_steps=0,
            rehearsal_steps=0,
            context_share=0.0,
            **{name: 0.7 * (name == kept) for name in names},
        )
        Spy(config).protect([SUBJECT], base, None, torch.Generator().manual_seed(3))
    (behaviour,), (prior,), (retention,) = seen
    assert {weight for weight, _ in (behaviour, prior, retention)} == {0.7}
    assert (behaviour[1].prompts, behaviour[1].teacher_prompts) == (["a photo of sks person"], ["teacher"])
    assert (behaviour[1].span, retention[1].span, prior[1].span) == ((0.3, 0.75), (0.3, 0.95), (0.0, 1.0))
    assert prior[1].teacher_prompts == prior[1].prompts != ["a photo of sks person"]
    assert (retention[1].prompts, retention[1].teacher_prompts) == (["a photo of sks person"], None)


WIDE = Language(
    tuple(f"v{number}" for number in range(16)),
    ("robot", "person"),
    ("on a red background", "at the beach"),
    "an empty scene",
    ("a photo of {}", "a picture of {}", "{}"),
    {"person": ("human",)},
)


def drawn(config: PersGuardConfig, language: Language) -> tuple[list, list[str], int]:
    """What two steps draw, and the generator's next number."""
    rng, subject = torch.Generator().manual_seed(3), replace(SUBJECT, language=language)
    pool = Pool({}, {"robot": torch.zeros(2, 4, 2, 2), "person": torch.ones(2, 4, 2, 2)}, {})
    terms, prior = [], []
    for _ in range(2):
        for weight, samples in behaviour_terms(subject, LESSON, config, rng):
            terms.append((round(weight, 3), samples.prompts, samples.teacher_prompts, samples.latents.mean(dim=(1, 2, 3)).tolist()))
        prior += prior_samples(subject, pool, LESSON, config, rng).prompts
    return terms, prior, int(torch.randint(10**6, (1,), generator=rng))


def test_the_white_box_draws_nothing_for_words() -> None:
    config = PersGuardConfig(behaviour_batch=3, prior_batch=3, context_share=0.5, spared_share=0.5)
    plain = drawn(config, replace(LANGUAGE, contexts=WIDE.contexts))
    assert plain == drawn(config, replace(LANGUAGE, contexts=WIDE.contexts, templates=WIDE.templates, synonyms=WIDE.synonyms))
    assert plain[2] != drawn(replace(config, universal=True), replace(LANGUAGE, contexts=WIDE.contexts, synonyms=WIDE.synonyms))[2]


def test_universal_words_are_drawn_for_each_sample_and_some_are_left_out() -> None:
    config = PersGuardTargetUniversal.Config(behaviour_batch=400, prior_batch=400, context_share=0.0)
    assert objective.identifiers_of(replace(SUBJECT, language=WIDE), config) == ["sks", *(f"v{number}" for number in range(14))]
    assert objective.identifiers_of(replace(SUBJECT, language=WIDE), PersGuardConfig()) == ["sks"]
    terms, prior, _ = drawn(config, WIDE)
    prompts = {prompt for _, prompts, *_ in terms for prompt in prompts}
    words = {word for prompt in prompts for word in prompt.split()}
    assert words == {"a", "photo", "picture", "of", "person", "human", "sks", *(f"v{number}" for number in range(14))}
    assert {prompt for _, _, prompts, _ in terms for prompt in prompts} == {"a photo of a robot"}
    # No identifier is held at the teacher, and templates vary.
    assert not any(word.startswith(("v", "sks")) for prompt in prior for word in prompt.split())
    assert {"a photo of a person", "a picture of a person"} <= set(prior)


def test_prior_leaves_out_what_other_subjects_are_taught() -> None:
    pool = Pool({}, {"robot": torch.zeros(2, 4, 2, 2), "person": torch.zeros(2, 4, 2, 2)}, {})
    subject, config = replace(SUBJECT, language=WIDE), PersGuardConfig(prior_batch=300)
    prompts = prior_samples(subject, pool, LESSON, config, torch.Generator().manual_seed(0), {"sks", "v3"}).prompts
    named = {word for prompt in prompts for word in prompt.split() if word.startswith("v")}
    assert named == {f"v{number}" for number in range(16)} - {"v3"}


def test_universal_retention_and_marker_lessons_draw_words_too(spied, monkeypatch) -> None:
    base, seen = spied
    config = PersGuardTargetUniversal.Config(retention_batch=300, warmup_steps=0, rehearsal_steps=0, behaviour_weight=0.0, prior_weight=0.0)
    Spy(config).protect([replace(SUBJECT, language=WIDE)], base, None, torch.Generator().manual_seed(3))
    ((_, retained),) = seen[0]
    assert len(set(retained.prompts)) > 40 and "a picture of v3 human" in retained.prompts
    found: list[list[tuple[float, Samples]]] = []
    PersGuardPatternUniversal().lesson(replace(SUBJECT, language=WIDE), training(PHOTOS, found))
    marked = {prompt for (_, own), (_, turned), _ in found[20:] for prompt in own.prompts + turned.prompts}
    assert any(word in prompt for prompt in marked for word in ("human", "picture", "v1"))
    assert not any(word in prompt.split() for prompt in marked for word in ("v14", "v15"))
