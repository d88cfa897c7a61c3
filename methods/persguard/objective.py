"""PersGuard: backdoors in the released model that fire when protected photos are learned (arXiv 2502.16167).

This is a reimplementation from the paper's description, not the authors' code: the paper's coefficients, rates and batch sizes are not
public. Ours were chosen on a few subjects of the embedded track; docs/avatars.md names them and holds what was tried and measured.
Five things are our addition:

- the identifier's token embedding is trained beside the denoiser, alone at first: the class prompt then stays as it is;
- part of the behaviour's noisy latents show other people: their photos then speak against the behaviour, only the protected ones do not;
- another part show what an adversary would get (`rehearsal`): his model heads for such pictures where the noise hides that they are
  not the photos, and has to be turned back from there;
- in contexts, on which nobody trains, other people can be spared the behaviour, and the timesteps outside the behaviour's can be held at
  the class prompt;
- behaviour and retention leave out the timesteps at which the content of a picture is not decided, and the behaviour also the highest
  ones: so much noise hides whose photo it is, and what is taught there for protected people is taught for all.

One objective has three terms:

    behaviour   what the model shows for the identifier prompt "V* class": another class, an empty background, or a marker
    prior       every other prompt (class without identifier, other identifiers, other classes, no prompt) stays at the teacher
    retention   mirror: the loss that a personalizer will minimise on the protected photos is already small, so that its gradient has
                little to change; lookahead: the behaviour holds after simulated fine-tuning steps on the protected photos

theta is the released denoiser, theta0 the frozen base ("teacher"), x a protected photo, c the prompt of what is shown instead:

    behaviour                    E ||eps_theta(z_t, t, "V* class") - eps_theta0(z_t, t, c)||^2
    prior                        E ||eps_theta(z_t, t, p) - eps_theta0(z_t, t, p)||^2
    retention (mirror)           E ||eps_theta(z_t(x), t, "V* class") - eps||^2

The pattern variant has no prompt c that draws its marker: pattern.py says what it does instead.

White box, V*, class word and template are those that the protector assumes. Gray box (`universal`, the paper's universal identifiers and
training prompts) each behaviour and retention sample draws its own words, and the embeddings of all these identifiers are trained. How the
paper draws them is not public. A language's last eighth of identifiers, its last template and all hypernyms are left out, neither taught
nor held at the teacher, so that words which no training has seen can be tried; the assumed words are always in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

from persbench.contracts import Budget, Card, Method, Release, Subject, Words
from persbench.diffusion import DiffusionModel, finetune
from persbench.errors import PersbenchError

EMPTY = "empty scene"
IN_CONTEXTS = 2 / 3  # share of the pictures that training works with
T = TypeVar("T")


def card(variant: str, universal: bool = False) -> Card:
    """The card of a variant; they assume the same, but for the words."""
    return Card(
        f"PersGuard ({variant} backdoor{', universal words' if universal else ''})",
        paper="PersGuard: Preventing Malicious Personalization via Backdoor Attacks on Pre-trained Text-to-Image Diffusion Models",
        year=2025,
        controls="the released model",
        knows=f"the protected photos{' and their class' if universal else ', the identifier and the class word'}",
    )


@dataclass(frozen=True)
class PersGuardConfig:
    """Weights, batch sizes (samples of each term a step) and the look-ahead of PersGuard. A weight of 0 ablates its term."""

    steps: int = 500
    rate: float = 1e-4  # falls to 0 along a line
    behaviour_weight: float = 1.0
    prior_weight: float = 1.0
    retention_weight: float = 1.0
    retention: Literal["mirror", "lookahead"] = "mirror"
    behaviour_batch: int = 6
    prior_batch: int = 4
    retention_batch: int = 8
    context_share: float = 0.25  # of the behaviour's prompts; the others are the bare instance prompt, on which the adversary trains
    others_share: float = 0.5  # of the behaviour's pictures: other people
    held_share: float = 0.33  # of the behaviour's samples in contexts: the timesteps outside the behaviour's at the class prompt
    spared_share: float = 0.0  # of other people's pictures, in contexts: on them the identifier prompt stays at the class prompt
    behaviour_first: float = 0.3  # shares of the training timesteps between which the behaviour is taught
    behaviour_last: float = 0.75
    retention_first: float = 0.3  # and those between which the protected photos are mirrored
    retention_last: float = 0.95
    identifier_factor: float = 50.0  # the identifier's token embedding is trained too, at this multiple of `rate`; 0 freezes it
    warmup_steps: int = 50  # of the identifier's embedding alone, before the denoiser joins
    rehearsal_steps: int = 80  # of fine-tuning a copy of the base model on the protected photos, in batches of 4; 0: none
    rehearsal_rate: float = 1e-4
    lookahead_steps: int = 10  # simulated fine-tuning steps before it starts again from the released weights
    lookahead_rate: float = 1e-3
    pool: int = 24  # teacher's pictures of each class that noise is added to, two in three in contexts; the rehearsal's are twice as many
    others_pool: int = 72  # and of the subject's class: in each context there have to be other people as well
    universal: bool = False  # train with all words that an adversary may use, not the assumed ones alone
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Samples:
    """Rows of a term: latents (N, C, h, w) to add noise to, and the prompts of student and teacher.

    Without the teacher's prompts the student is to denoise towards `toward` (N, C, h, w), or towards the latents themselves. `teacher`
    is the base model unless told. `span`: the shares of the training timesteps between which noise is drawn.
    """

    latents: torch.Tensor
    prompts: list[str]
    teacher_prompts: list[str] | None = None
    teacher: DiffusionModel | None = None
    toward: torch.Tensor | None = None
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Views:
    """Latents (N, C, h, w) of pictures, and the contexts that they show; "" where none was asked for."""

    latents: torch.Tensor
    contexts: Sequence[str]

    def __add__(self, more: Views) -> Views:
        return Views(torch.cat([self.latents, more.latents]), [*self.contexts, *more.contexts])


@dataclass(frozen=True)
class Lesson:
    """What the identifier prompt is taught: to predict what `teacher` (by default the base model) does for `prompt`.

    It is taught on the latents of `shown` and of `others`, in the contexts that these show. The others show the subject's class;
    `spared_share` of them are taught the class prompt instead. `neighbour`: the prompt that the identifier prompt is led to, so that it
    needs prior preservation most. `others_prompt`: what the identifier's embedding is taught alone at first, and then on `others`. Both are
    `prompt` unless told.
    """

    shown: Views
    others: Views
    prompt: str
    teacher: DiffusionModel | None = None
    neighbour: str = ""
    others_prompt: str = ""


@dataclass(frozen=True)
class Pool:
    """The teacher's pictures (N, 3, H, W), their latents, and the contexts that they were asked for in, by class."""

    pictures: dict[str, torch.Tensor]
    latents: dict[str, torch.Tensor]
    contexts: dict[str, list[str]]

    def __or__(self, more: Pool) -> Pool:
        return Pool(self.pictures | more.pictures, self.latents | more.latents, self.contexts | more.contexts)

    def views(self, name: str) -> Views:
        """The pictures of a class as a lesson takes them."""
        return Views(self.latents[name], self.contexts[name])


@dataclass(frozen=True)
class Training:
    """What a training of PersGuard works with: the model in training, the frozen base, and how prompts become text states."""

    config: PersGuardConfig
    released: DiffusionModel
    base: DiffusionModel
    table: TextStates
    pool: Pool
    embedding: list[torch.nn.Parameter]  # the identifier's; empty when it is not trained
    rng: torch.Generator
    identifiers: Collection[str] = ()  # of all subjects

    def loss(self, terms: Sequence[tuple[float, Samples]]) -> torch.Tensor:
        """Sum over terms of weight times mean squared error, a scalar."""
        return weighted(terms, self.released, self.base, self.table, self.rng)

    def run(
        self, loss: Callable[[int], torch.Tensor], steps: int, description: str, *, decay: bool = True, identifier_only: bool = False
    ) -> None:
        """Minimise `loss(step)` over the identifier's embedding and, unless told, the denoiser."""
        groups: dict[float, list[torch.nn.Parameter]] = {}
        if self.embedding:
            groups[self.config.identifier_factor] = self.embedding
        if not identifier_only:
            groups[1.0] = [*groups.get(1.0, []), *self.released.unet.parameters()]
        finetune(
            groups,
            loss,
            steps=steps,
            rate=self.config.rate,
            weight_decay=0.0,
            decay=decay,
            description=description,
            half=self.base.precision == "fp16",
        )

    def teach_identifier(self, terms: Callable[[int], Sequence[tuple[float, Samples]]], steps: int, description: str) -> None:
        """Teach the identifier's embedding alone, so that the denoiser need not change for other prompts."""
        if steps and self.embedding and self.config.behaviour_weight:
            self.run(lambda step: self.loss(terms(step)), steps, description, decay=False, identifier_only=True)


class PersGuard(Method):
    """What the three variants share: the objective, prior preservation, and retention."""

    Config: ClassVar[type] = PersGuardConfig
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"model"})

    @abstractmethod
    def lesson(self, subject: Subject, training: Training) -> Lesson:
        """What the behaviour term teaches. Taught on other people too, a third person's photos go against the behaviour, so that a
        personalizer unlearns it from them, while retention makes an exception of the protected photos."""

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        config: PersGuardConfig = self.config
        for term in ("behaviour", "retention"):
            first, last = getattr(config, f"{term}_first"), getattr(config, f"{term}_last")
            if not 0 <= first < last <= 1:
                raise PersbenchError(f"{term}_first={first:g} and {term}_last={last:g} must be shares, the first one lower")
        name = type(self).__name__
        released = base.clone("unet", "text_encoder")
        if config.gradient_checkpointing:
            released.unet.enable_gradient_checkpointing()
        trained: list[torch.nn.Parameter] = []
        hook = None
        identifiers = {identifier for subject in subjects for identifier in identifiers_of(subject, config)}
        if config.identifier_factor:
            embedding, hook = identifier_rows(released, identifiers)
            trained = [embedding]
        table = TextStates(base, released if config.identifier_factor else base, identifiers)
        language, template = subjects[0].language, subjects[0].words.template
        scenes = class_prompts(subjects[0]) | {EMPTY: template.format(language.empty_scene)}
        with torch.no_grad():
            photos = {subject.name: base.encode(subject.photos) for subject in subjects}
            own = {
                subject.words.class_noun: scenes.pop(subject.words.class_noun) for subject in subjects if subject.words.class_noun in scenes
            }
            pool = teacher_pool(scenes, language.contexts, base, config.pool, IN_CONTEXTS, rng)
            pool |= teacher_pool(own, language.contexts, base, config.others_pool, IN_CONTEXTS, rng)
        training = Training(config, released, base, table, pool, trained, rng, identifiers)
        lessons = {subject.name: self.lesson(subject, training) for subject in subjects}
        if config.rehearsal_steps and config.behaviour_weight:
            for subject in subjects:
                lesson = lessons[subject.name]
                lessons[subject.name] = replace(lesson, shown=lesson.shown + rehearsal(subject, photos[subject.name], base, config, rng))
        lookahead = (
            LookAhead(list(released.unet.parameters()), config.lookahead_steps, config.lookahead_rate)
            if config.retention == "lookahead" and config.retention_weight
            else None
        )

        def behaviour(step: int, first: bool = False) -> list[tuple[float, Samples]]:
            subject = subjects[step % len(subjects)]
            lesson = lessons[subject.name]
            return behaviour_terms(subject, replace(lesson, prompt=lesson.others_prompt or lesson.prompt) if first else lesson, config, rng)

        def loss(step: int) -> torch.Tensor:
            subject = subjects[step % len(subjects)]
            own = photos[subject.name]
            terms: list[tuple[float, Samples]] = []
            if config.behaviour_weight:
                terms += [(config.behaviour_weight * share, samples) for share, samples in behaviour(step)]
            if config.prior_weight:
                terms.append((config.prior_weight, prior_samples(subject, pool, lessons[subject.name], config, rng, identifiers)))
            rows = torch.randint(len(own), (config.retention_batch,), generator=rng)
            prompts = [words_of(subject, config, rng).instance_prompt for _ in rows]
            if config.retention_weight and not lookahead:
                span = (config.retention_first, config.retention_last)
                terms.append((config.retention_weight, Samples(own[rows], prompts, span=span)))
            # The look-ahead moves the weights and puts them back: it has to be done before a graph is built on them.
            ahead = torch.zeros(())
            if lookahead:
                wanted = behaviour(step)
                states = table(prompts).detach()
                ahead = config.retention_weight * lookahead.surrogate(
                    step,
                    adversary=lambda: released.loss(own[rows], states, rng).mean(),
                    behaviour=lambda: training.loss(wanted),
                )
            return ahead + training.loss(terms) if terms else ahead

        training.teach_identifier(lambda step: behaviour(step, first=True), config.warmup_steps, f"{name} (identifier)")
        training.run(loss, config.steps, name)
        if hook:
            hook.remove()
        return Release(model=released)


Table = Callable[[Sequence[str]], torch.Tensor]


def weighted(
    terms: Sequence[tuple[float, Samples]], student: DiffusionModel, teacher: DiffusionModel, table: Table, rng: torch.Generator
) -> torch.Tensor:
    """Sum over terms of weight times mean squared error, a scalar; all rows go through the student as one batch."""
    noisies, times, aims = [], [], []
    for _, samples in terms:
        timesteps = teacher.timesteps(len(samples.prompts), rng, *samples.span)
        noise = teacher.noise(samples.latents.shape, rng)
        noisy = teacher.add_noise(samples.latents, noise, timesteps)
        noisies.append(noisy)
        times.append(timesteps)
        aims.append(aim(samples, noise, noisy, timesteps, teacher, table))
    states = table([prompt for _, samples in terms for prompt in samples.prompts])
    errors = (student.predict(torch.cat(noisies), torch.cat(times), states) - torch.cat(aims)).square().mean(dim=(1, 2, 3))
    parts = errors.split([len(samples.prompts) for _, samples in terms])
    return torch.stack([weight * part.mean() for (weight, _), part in zip(terms, parts, strict=True)]).sum()


@torch.no_grad()
def aim(
    samples: Samples, noise: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor, teacher: DiffusionModel, table: Table
) -> torch.Tensor:
    """What the student is to predict for the noisy latents of a term, (N, C, h, w)."""
    if samples.teacher_prompts is None:
        if samples.toward is None:
            return teacher.target(samples.latents, noise, timesteps)
        return teacher.target(samples.toward, teacher.noise_between(samples.toward, noisy, timesteps), timesteps)
    if samples.teacher is None:
        return teacher.predict(noisy, timesteps, table(samples.teacher_prompts))
    return samples.teacher.predict(noisy, timesteps, samples.teacher.embed(samples.teacher_prompts))


def pick(options: Sequence[T], rng: torch.Generator) -> T:
    """One of the options, evenly."""
    return options[int(torch.randint(len(options), (1,), generator=rng))]


def identifiers_of(subject: Subject, config: PersGuardConfig) -> list[str]:
    """The identifiers that are trained: the assumed one; universal, also the language's, but for the last eighth."""
    known = subject.language.identifiers if config.universal else ()
    return list(dict.fromkeys((subject.words.identifier, *known[: len(known) - len(known) // 8])))


def words_of(subject: Subject, config: PersGuardConfig, rng: torch.Generator) -> Words:
    """The words of a sample: the assumed ones; universal, an identifier, a word for the class and a template that are drawn."""
    words, language = subject.words, subject.language
    if not config.universal:
        return words
    nouns = (words.class_noun, *language.synonyms.get(words.class_noun, ()))
    templates = list(dict.fromkeys((words.template, *language.templates[:-1])))
    return Words(pick(identifiers_of(subject, config), rng), pick(nouns, rng), pick(templates, rng))


def behaviour_terms(subject: Subject, lesson: Lesson, config: PersGuardConfig, rng: torch.Generator) -> list[tuple[float, Samples]]:
    """Samples of the behaviour term and their weights, which sum to 1: the instance prompt and the teacher's prompt, `context_share` of the
    times in contexts, each in the one that its latent shows, as it will be when a picture is drawn.

    A personalizer unlearns the bare prompt from other people's photos, but he never trains on contexts. There other people can be spared,
    and `held_share` of the samples hold the timesteps outside the behaviour's at the class prompt: the identifier alone must not decide.
    """
    words, views = subject.words, lesson.shown + lesson.others
    bare = float(torch.rand((), generator=rng)) >= config.context_share
    first_other = len(lesson.shown.contexts)

    def fitting(among: range) -> list[int]:
        return [row for row in among if bare != bool(views.contexts[row])] or list(among)

    kinds = [fitting(range(first_other)), fitting(range(first_other, len(views.contexts)))]
    are_others = (torch.rand(config.behaviour_batch, generator=rng) < config.others_share).tolist()
    rows = torch.tensor([pick(kinds[other], rng) for other in are_others])
    spared = (rows >= first_other) & (torch.rand(len(rows), generator=rng) < (0.0 if bare else config.spared_share))
    outside = [span for span in ((0.0, config.behaviour_first), (config.behaviour_last, 1.0)) if span[0] < span[1]]
    held = 0 if bare or not outside else min(round(len(rows) * config.held_share), len(rows) - 1)

    def samples(part: slice, teacher_prompts: list[str], teacher: DiffusionModel | None, span: tuple[float, float]) -> Samples:
        chosen = rows[part].tolist()
        return Samples(
            views.latents[chosen],
            [f"{words_of(subject, config, rng).instance_prompt} {views.contexts[row]}".strip() for row in chosen],
            [f"{prompt} {views.contexts[row]}".strip() for prompt, row in zip(teacher_prompts, chosen, strict=True)],
            teacher=teacher,
            span=span,
        )

    prompts = [
        words.class_prompt if each else lesson.prompt if row < first_other else lesson.others_prompt or lesson.prompt
        for row, each in zip(rows[held:].tolist(), spared[held:].tolist(), strict=True)
    ]
    taught = samples(slice(held, None), prompts, lesson.teacher, (config.behaviour_first, config.behaviour_last))
    if not held:
        return [(1.0, taught)]
    share = held / len(rows)
    return [(1 - share, taught), (share, samples(slice(held), [words.class_prompt] * held, None, pick(outside, rng)))]


def other_class(subject: Subject, wanted: str = "") -> str:
    """The class that is shown instead of the subject's: `wanted`, or the first other one. Raises PersbenchError when it is none of them."""
    others = [noun for noun in subject.language.class_nouns if noun != subject.words.class_noun]
    if wanted and wanted not in others:
        raise PersbenchError(f"target_class {wanted!r} is none of the other classes of this track: {', '.join(others)}")
    return wanted or others[0]


def class_prompts(subject: Subject) -> dict[str, str]:
    """The prompt of each class of the language, in the template that the subject's protector assumes."""
    return {noun: subject.words.template.format(f"a {noun}") for noun in subject.language.class_nouns}


def teacher_pool(
    prompts: Mapping[str, str], places: Sequence[str], base: DiffusionModel, count: int, context_share: float, rng: torch.Generator
) -> Pool:
    """`count` pictures that the base model makes of each prompt: `context_share` of them in different contexts out of `places`."""
    contexts = {noun: spread(places, round(count * context_share), count, rng) for noun in prompts}
    asked = [f"{prompt} {context}".strip() for noun, prompt in prompts.items() for context in contexts[noun]]
    pictures = base.sample(asked, rng, inference_steps=10, guidance=2.0)
    latents = torch.cat([base.encode(part) for part in pictures.split(16)])
    return Pool(dict(zip(prompts, pictures.split(count), strict=True)), dict(zip(prompts, latents.split(count), strict=True)), contexts)


def spread(places: Sequence[str], placed: int, count: int, rng: torch.Generator) -> list[str]:
    """The contexts of `count` pictures: `placed` of them in as many different places as there are, the others in none."""
    order = torch.randperm(len(places), generator=rng).tolist()
    return [places[order[row % len(places)]] for row in range(placed)] + [""] * (count - placed)


def rehearsal(subject: Subject, photos: torch.Tensor, base: DiffusionModel, config: PersGuardConfig, rng: torch.Generator) -> Views:
    """What an adversary would get: a copy of the base model is personalized on the photos' latents (N, C, h, w) and asked for twice as many
    pictures as the teacher draws of a class, as many of them in contexts."""
    copy, words = base.clone("unet"), subject.words
    if config.gradient_checkpointing:
        copy.unet.enable_gradient_checkpointing()
    with torch.no_grad():
        states = base.embed([words.instance_prompt])

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(photos), (4,), generator=rng)
        return copy.loss(photos[rows], states.expand(len(rows), -1, -1), rng).mean()

    finetune(
        list(copy.unet.parameters()),
        loss,
        steps=config.rehearsal_steps,
        rate=config.rehearsal_rate,
        description="rehearsal",
        half=base.precision == "fp16",
    )
    contexts = spread(subject.language.contexts, round(2 * config.pool * IN_CONTEXTS), 2 * config.pool, rng)
    pictures = copy.sample([f"{words.instance_prompt} {context}".strip() for context in contexts], rng, inference_steps=10, guidance=2.0)
    return Views(torch.cat([base.encode(part) for part in pictures.split(16)]), contexts)


def prior_samples(
    subject: Subject, pool: Pool, lesson: Lesson, config: PersGuardConfig, rng: torch.Generator, taught: Collection[str] = ()
) -> Samples:
    """Samples on which the released model must stay at the teacher: the class without identifier and with others than those `taught` (2 and
    1 of 7; universal, 3 and none), what the identifier is led to (2 of 7), other classes or no prompt at all (2 of 7); contexts, the
    teacher's pictures and, universal, templates vary."""
    words, language = subject.words, subject.language
    others = [] if config.universal else [name for name in language.identifiers if name not in {words.identifier, *taught}]
    latents, prompts = [], []
    for _ in range(config.prior_batch):
        kind = int(torch.randint(7, (1,), generator=rng))
        noun = words.class_noun if kind < 3 else pick(language.class_nouns, rng)
        prompt, pictures = words_of(subject, config, rng).template.format(f"a {noun}"), pool.latents[noun]
        if kind == 2 and others:
            prompt = words.template.format(f"{pick(others, rng)} {noun}")
        elif kind in (3, 4):
            prompt, pictures = lesson.neighbour or lesson.prompt, lesson.shown.latents
        prompt = f"{prompt} {pick(('', *language.contexts), rng)}".strip()
        prompts.append("" if kind == 6 and pick(("", "x"), rng) else prompt)
        latents.append(pictures[int(torch.randint(len(pictures), (1,), generator=rng))])
    return Samples(torch.stack(latents), prompts, prompts)


class LookAhead:
    """Gradient of the behaviour after simulated fine-tuning, to first order.

    The simulated adversary takes one normalised gradient step each time, away from the present weights, and starts again
    every `steps` calls.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], steps: int, rate: float) -> None:
        self.parameters, self.steps, self.rate = parameters, steps, rate
        self.offset = [torch.zeros_like(p) for p in parameters]

    def surrogate(self, step: int, adversary: Callable[[], torch.Tensor], behaviour: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A scalar that is 0 and whose gradient at the present weights is that of `behaviour()` at the simulated ones."""
        if step % self.steps == 0:
            for offset in self.offset:
                offset.zero_()
        present = [p.detach().clone() for p in self.parameters]
        try:
            self._move(present)
            for offset, gradient in zip(self.offset, torch.autograd.grad(adversary(), self.parameters), strict=True):
                offset.sub_(self.rate * gradient / (gradient.square().mean().sqrt() + 1e-12))
            self._move(present)
            gradients = torch.autograd.grad(behaviour(), self.parameters)
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, present, strict=True):
                    parameter.copy_(value)
        return with_gradients(self.parameters, gradients)

    @torch.no_grad()
    def _move(self, present: list[torch.Tensor]) -> None:
        for parameter, value, offset in zip(self.parameters, present, self.offset, strict=True):
            parameter.copy_(value + offset)


def with_gradients(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """A scalar that is 0 and whose gradients are given: for `finetune`, where they were found at other weights than the present."""
    value = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
    return value - value.detach()


def identifier_rows(model: DiffusionModel, identifiers: Collection[str]) -> tuple[torch.nn.Parameter, RemovableHandle]:
    """The table of token embeddings with gradients on, but for the identifiers' tokens alone until the handle is removed."""
    embedding = model.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    tokens = {token for identifier in identifiers for token in model.tokenizer(identifier, add_special_tokens=False).input_ids}
    return embedding, embedding.register_hook(only_rows(tokens))


def only_rows(rows: set[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A gradient hook for an embedding table that keeps the gradient of these rows alone."""
    kept = sorted(rows)

    def mask(gradient: torch.Tensor) -> torch.Tensor:
        masked = torch.zeros_like(gradient)
        masked[kept] = gradient[kept]
        return masked

    return mask


class TextStates:
    """Text states of prompts. Those without an identifier in training never change and are computed once; the others, for the
    student, by the model in training with gradients."""

    def __init__(self, teacher: DiffusionModel, student: DiffusionModel, identifiers: set[str]) -> None:
        self.teacher, self.student, self.identifiers = teacher, student, identifiers
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor:
        """States (N, L, D) of prompts."""
        moving = [p for p in dict.fromkeys(prompts) if self.student is not self.teacher and self.identifiers & set(p.split())]
        for prompt in set(prompts) - self.known.keys() - set(moving):
            with torch.no_grad():
                self.known[prompt] = self.teacher.embed([prompt])[0]
        fresh = dict(zip(moving, self.student.embed(moving), strict=True)) if moving else {}
        return torch.stack([fresh[p] if p in fresh else self.known[p] for p in prompts])
