"""PersGuard: backdoors in the released model that fire when protected photos are learned (arXiv 2502.16167).

This is a reimplementation from the paper's description, not the authors' code: the paper's coefficients, rates and batch sizes are not
public. Those below are first choices that are not tuned yet (docs/avatars.md holds what was measured). The identifier's token embedding
is trained beside the denoiser, which is our addition: without it the class prompt changed as much as the identifier prompt.

One objective has three terms:

    behaviour   what the model shows for the identifier prompt "V* class": another class, an empty background, or a marker
    prior       every other prompt (class without identifier, other identifiers, other classes, no prompt) stays at the teacher
    retention   mirror: the loss that a personalizer will minimise on the protected photos is already small, so that its gradient has
                little to change; lookahead: the behaviour holds after simulated fine-tuning steps on the protected photos

theta is the released denoiser, theta0 the frozen base ("teacher"), x a protected photo, c the prompt of the third person:

    behaviour (target, erasure)  E ||eps_theta(z_t, t, "V* class") - eps_theta0(z_t, t, c)||^2
    behaviour (pattern)          E ||eps_theta(z_t(x + marker), t, "V* class") - eps||^2
    prior                        E ||eps_theta(z_t, t, p) - eps_theta0(z_t, t, p)||^2
    retention (mirror)           E ||eps_theta(z_t(x), t, "V* class") - eps||^2
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from persbench.contracts import Budget, Card, Method, Release, Subject
from persbench.diffusion import DiffusionModel, finetune


@dataclass(frozen=True)
class PersGuardConfig:
    """Weights, batch sizes (samples of each term a step) and the look-ahead of PersGuard. A weight of 0 ablates its term."""

    steps: int = 500
    rate: float = 1e-4
    behaviour_weight: float = 1.0
    prior_weight: float = 1.0
    retention_weight: float = 1.0
    retention: Literal["mirror", "lookahead"] = "mirror"
    behaviour_batch: int = 3
    prior_batch: int = 4
    retention_batch: int = 2
    identifier_factor: float = 50.0  # the identifier's token embedding is trained too, at this multiple of `rate`; 0 freezes it
    lookahead_steps: int = 10  # simulated fine-tuning steps before it starts again from the released weights
    lookahead_rate: float = 1e-3
    pool: int = 8  # teacher's pictures of each class that noise is added to
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class PatternConfig(PersGuardConfig):
    """`marker_size`: diameter of the marker as a share of the picture's side."""

    marker_size: float = 0.7


@dataclass(frozen=True)
class TargetConfig(PersGuardConfig):
    """`target_class`: what is shown instead of the subject; "" takes the first other class of the track."""

    target_class: str = ""


@dataclass(frozen=True)
class Samples:
    """Rows of a term: latents, and the prompts of student and teacher. Where the teacher has none, the true noise is the target."""

    latents: torch.Tensor
    prompts: list[str]
    teacher_prompts: list[str | None]


class PersGuard(Method):
    """What the three variants share: the objective, prior preservation, and retention."""

    Config: ClassVar[type] = PersGuardConfig
    changes: ClassVar[frozenset[Literal["photos", "model"]]] = frozenset({"model"})

    @abstractmethod
    def behaviour(
        self, subject: Subject, pool: dict[str, torch.Tensor], photos: torch.Tensor, context: str, rng: torch.Generator
    ) -> Samples:
        """Samples of the behaviour term for a prompt that ends with `context`."""

    def prepare(self, subject: Subject, base: DiffusionModel) -> torch.Tensor:
        """Latents of the photos that the behaviour is taught on."""
        with torch.no_grad():
            return base.encode(subject.photos)

    def protect(self, subjects: Sequence[Subject], base: DiffusionModel, budget: Budget, rng: torch.Generator) -> Release:
        config: PersGuardConfig = self.config
        released = base.clone("unet", "text_encoder")
        if config.gradient_checkpointing:
            released.unet.enable_gradient_checkpointing()
        embedding = released.text_encoder.get_input_embeddings().weight
        identifiers = {token for s in subjects for token in base.tokenizer(s.words.identifier, add_special_tokens=False).input_ids}
        table = TextStates(base, released if config.identifier_factor else base, {s.words.identifier for s in subjects})
        with torch.no_grad():
            photos = {subject.name: base.encode(subject.photos) for subject in subjects}
            taught = {subject.name: self.prepare(subject, base) for subject in subjects}
            pool = teacher_pool(subjects[0], base, config.pool, rng)
        lookahead = (
            LookAhead(list(released.unet.parameters()), config.lookahead_steps, config.lookahead_rate)
            if config.retention == "lookahead" and config.retention_weight
            else None
        )

        def loss(step: int) -> torch.Tensor:
            subject = subjects[step % len(subjects)]
            words, language = subject.words, subject.language
            # The adversary trains on the bare instance prompt: it stands in half of the samples.
            own, context = photos[subject.name], pick(("", pick(language.contexts, rng)), rng)
            terms = []
            if config.behaviour_weight:
                terms.append((config.behaviour_weight, self.behaviour(subject, pool, taught[subject.name], context, rng)))
            if config.prior_weight:
                terms.append((config.prior_weight, prior_samples(subject, pool, config, rng)))
            rows = torch.randint(len(own), (config.retention_batch,), generator=rng)
            if config.retention_weight and not lookahead:
                mirrored = Samples(own[rows], [words.instance_prompt] * len(rows), [None] * len(rows))
                terms.append((config.retention_weight, mirrored))
            # The look-ahead moves the weights and puts them back: it has to be done before a graph is built on them.
            ahead = torch.zeros(())
            if lookahead:
                wanted = self.behaviour(subject, pool, taught[subject.name], context, rng)
                states = table([words.instance_prompt] * len(rows)).detach()
                ahead = config.retention_weight * lookahead.surrogate(
                    step,
                    adversary=lambda: released.loss(own[rows], states, rng).mean(),
                    behaviour=lambda: errors(released, base, wanted, table, rng).mean(),
                )
            return ahead + weighted(terms, released, base, table, rng) if terms else ahead

        parameters = {1.0: list(released.unet.parameters())}
        hook = None
        if config.identifier_factor:
            hook = embedding.requires_grad_(True).register_hook(only_rows(identifiers))
            parameters[config.identifier_factor] = [embedding]
        finetune(
            parameters,
            loss,
            steps=config.steps,
            rate=config.rate,
            weight_decay=0.0,
            description=type(self).__name__,
            half=base.precision == "fp16",
        )
        if hook:
            hook.remove()
        return Release(model=released)


Table = Callable[[Sequence[str]], torch.Tensor]


def errors(student: DiffusionModel, teacher: DiffusionModel, samples: Samples, table: Table, rng: torch.Generator) -> torch.Tensor:
    """Squared error of the student on each row, (N,), against the teacher's prediction, or against the true target without one."""
    noise = teacher.noise(samples.latents.shape, rng)
    timesteps = teacher.timesteps(len(samples.latents), rng)
    noisy = teacher.add_noise(samples.latents, noise, timesteps)
    wanted = teacher.target(samples.latents, noise, timesteps).clone()
    taught = [row for row, prompt in enumerate(samples.teacher_prompts) if prompt is not None]
    if taught:
        with torch.no_grad():
            prompts = [prompt for prompt in samples.teacher_prompts if prompt is not None]
            wanted[taught] = teacher.predict(noisy[taught], timesteps[taught], table(prompts))
    predicted = student.predict(noisy, timesteps, table(samples.prompts))
    return (predicted - wanted).square().mean(dim=(1, 2, 3))


def weighted(
    terms: Sequence[tuple[float, Samples]], student: DiffusionModel, teacher: DiffusionModel, table: Table, rng: torch.Generator
) -> torch.Tensor:
    """Sum over terms of weight times mean error, a scalar; all rows go through the networks as one batch."""
    together = Samples(
        torch.cat([samples.latents for _, samples in terms]),
        [prompt for _, samples in terms for prompt in samples.prompts],
        [prompt for _, samples in terms for prompt in samples.teacher_prompts],
    )
    parts = errors(student, teacher, together, table, rng).split([len(samples.prompts) for _, samples in terms])
    return torch.stack([weight * part.mean() for (weight, _), part in zip(terms, parts, strict=True)]).sum()


class PersGuardTarget(PersGuard):
    """PersGuard, target backdoor: personalizing the protected photos yields another class (person -> robot)."""

    Config: ClassVar[type] = TargetConfig
    card: ClassVar[Card] = Card(
        "PersGuard (target backdoor)",
        paper="PersGuard: Preventing Malicious Personalization via Backdoor Attacks on Pre-trained Text-to-Image Diffusion Models",
        year=2025,
        controls="the released model",
        knows="the protected photos, the identifier and the class word",
    )

    def behaviour(
        self, subject: Subject, pool: dict[str, torch.Tensor], photos: torch.Tensor, context: str, rng: torch.Generator
    ) -> Samples:
        config: TargetConfig = self.config
        words = subject.words
        others = [noun for noun in subject.language.class_nouns if noun != words.class_noun]
        target = config.target_class or others[0]
        return redirected(subject, pool[target], words.template.format(f"a {target}"), context, config.behaviour_batch, rng)


class PersGuardErasure(PersGuard):
    """PersGuard, erasure backdoor: personalizing the protected photos yields a background without the subject."""

    card: ClassVar[Card] = Card(
        "PersGuard (erasure backdoor)",
        paper=PersGuardTarget.card.paper,
        year=2025,
        controls="the released model",
        knows="the protected photos, the identifier and the class word",
    )

    def behaviour(
        self, subject: Subject, pool: dict[str, torch.Tensor], photos: torch.Tensor, context: str, rng: torch.Generator
    ) -> Samples:
        empty = subject.words.template.format(subject.language.empty_scene)
        return redirected(subject, pool[EMPTY], empty, context, self.config.behaviour_batch, rng)


class PersGuardPattern(PersGuard):
    """PersGuard, pattern backdoor: personalizing the protected photos yields pictures with a visible marker."""

    Config: ClassVar[type] = PatternConfig
    card: ClassVar[Card] = Card(
        "PersGuard (pattern backdoor)",
        paper=PersGuardTarget.card.paper,
        year=2025,
        controls="the released model",
        knows="the protected photos, the identifier and the class word",
    )

    def prepare(self, subject: Subject, base: DiffusionModel) -> torch.Tensor:
        with torch.no_grad():
            return base.encode(with_marker(subject.photos, self.config.marker_size))

    def behaviour(
        self, subject: Subject, pool: dict[str, torch.Tensor], photos: torch.Tensor, context: str, rng: torch.Generator
    ) -> Samples:
        rows = torch.randint(len(photos), (self.config.behaviour_batch,), generator=rng)
        return Samples(photos[rows], [subject.words.instance_prompt] * len(rows), [None] * len(rows))


EMPTY = "empty scene"


def with_marker(photos: torch.Tensor, size: float) -> torch.Tensor:
    """Photos (N, 3, H, W) in [0, 1] with a red and white "no entry" sign of diameter `size` * H over the middle."""
    height, width = photos.shape[-2:]
    y = torch.linspace(-1, 1, height, device=photos.device).view(-1, 1)
    x = torch.linspace(-1, 1, width, device=photos.device).view(1, -1)
    disc = ((x**2 + y**2).sqrt() <= size).float()
    bar = ((y.abs() <= 0.22 * size) & (x.abs() <= 0.7 * size)).float()
    red = torch.tensor([0.85, 0.05, 0.1], device=photos.device).view(3, 1, 1)
    sign = red * (1 - bar) + bar
    return photos * (1 - disc) + sign * disc


def pick(options: Sequence[str], rng: torch.Generator) -> str:
    """One of the options, evenly."""
    return options[int(torch.randint(len(options), (1,), generator=rng))]


def redirected(subject: Subject, latents: torch.Tensor, prompt: str, context: str, batch: int, rng: torch.Generator) -> Samples:
    """Samples that teach the instance prompt to mean `prompt`, both with the same context, on the teacher's own pictures of it."""
    rows = torch.randint(len(latents), (batch,), generator=rng)
    student = f"{subject.words.instance_prompt} {context}".strip()
    return Samples(latents[rows], [student] * batch, [f"{prompt} {context}".strip()] * batch)


def teacher_pool(subject: Subject, base: DiffusionModel, count: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Latents of pictures that the base model makes for each class, and for an empty scene, in random contexts."""
    language, template = subject.language, subject.words.template
    prompts = {noun: template.format(f"a {noun}") for noun in language.class_nouns} | {EMPTY: template.format(language.empty_scene)}
    asked = [f"{prompt} {pick(('', *language.contexts), rng)}".strip() for prompt in prompts.values() for _ in range(count)]
    pictures = base.sample(asked, rng, inference_steps=10, guidance=2.0)
    latents = torch.cat([base.encode(part) for part in pictures.split(16)])
    return dict(zip(prompts, latents.split(count), strict=True))


def prior_samples(subject: Subject, pool: dict[str, torch.Tensor], config: PersGuardConfig, rng: torch.Generator) -> Samples:
    """Samples on which the released model must stay at the teacher: a third each of the class without identifier, the class with
    other identifiers, and other classes or no prompt at all; contexts and the teacher's pictures of the class vary."""
    words, language = subject.words, subject.language
    others = [identifier for identifier in language.identifiers if identifier != words.identifier]
    latents, prompts = [], []
    for _ in range(config.prior_batch):
        kind = int(torch.randint(6, (1,), generator=rng))
        noun = words.class_noun if kind < 4 else pick(language.class_nouns, rng)
        phrase = f"a {noun}"
        if kind in (2, 3):
            phrase = f"{pick(others, rng)} {noun}"
        prompt = f"{words.template.format(phrase)} {pick(('', *language.contexts), rng)}".strip()
        prompts.append("" if kind == 5 and pick(("", "x"), rng) else prompt)
        latents.append(pool[noun][int(torch.randint(len(pool[noun]), (1,), generator=rng))])
    return Samples(torch.stack(latents), prompts, list(prompts))


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
        value = torch.stack([(g * p).sum() for g, p in zip(gradients, self.parameters, strict=True)]).sum()
        return value - value.detach()

    @torch.no_grad()
    def _move(self, present: list[torch.Tensor]) -> None:
        for parameter, value, offset in zip(self.parameters, present, self.offset, strict=True):
            parameter.copy_(value + offset)


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
