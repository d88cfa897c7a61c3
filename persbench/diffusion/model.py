"""Stable Diffusion 1.x and 2.x (and anything of their architecture, the embedded model included) as the suite uses it.

[-1, 1] exists only inside this file; every public boundary is [0, 1].
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from persbench.errors import PersbenchError
from persbench.progress import steps

Precision = Literal["fp32", "fp16", "bf16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARTS = ("unet", "text_encoder", "vae")


class DiffusionModel:
    """A latent text-to-image model: encode, embed, noise, denoise, sample.

    Attributes are the diffusers parts: `tokenizer`, `text_encoder`, `vae`, `unet`, `schedule` (DDPM; knows whether the network
    predicts noise, velocity or the clean latent). Weights are frozen; whoever trains turns gradients on for what it trains.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, vae: Any, unet: Any, schedule: Any, precision: Precision = "fp32") -> None:
        self.tokenizer, self.text_encoder, self.vae, self.unet, self.schedule = tokenizer, text_encoder, vae, unet, schedule
        self.precision: Precision = precision
        for part in PARTS:
            getattr(self, part).requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: Path, precision: Precision = "fp32", device: str = "cpu") -> DiffusionModel:
        """Read a diffusers pipeline folder (safetensors only). Raises PersbenchError when it is not one."""
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from diffusers.utils import logging as diffusers_logging
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        index = folder / "model_index.json"
        if not index.is_file():
            raise PersbenchError(f"base model {folder}: no model_index.json there; give the folder of a diffusers pipeline")
        wanted = json.loads(index.read_text("utf-8")).get("_class_name", "")
        if "StableDiffusion" not in wanted or "XL" in wanted or "3" in wanted:
            raise PersbenchError(f"base model {folder}: {wanted or 'its pipeline'} is not supported; Stable Diffusion 1.x and 2.x are")
        # Checkpoints may be stored in half precision: weights are fp32 masters, `precision` is what autocast computes in.
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        try:
            model = cls(
                CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
                CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, **options),
                AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **options),
                UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32, **options),
                DDPMScheduler.from_pretrained(folder / "scheduler"),
                precision,
            )
        except (OSError, ValueError, KeyError) as error:
            raise PersbenchError(f"base model {folder} cannot be read: {str(error).splitlines()[0]}") from error
        for part in PARTS:
            getattr(model, part).to(device)
        return model

    @property
    def device(self) -> torch.device:
        """Where the weights are. The property of diffusers looks through all of the network, which would be 5% of a step."""
        return next(self.unet.parameters()).device

    @property
    def picture_size(self) -> int:
        """Pixels a side of the pictures that the model makes."""
        return self.unet.config.sample_size * self.downscale

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, each way."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def autocast(self) -> AbstractContextManager:
        """Mixed precision as chosen; nothing in fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    def clone(self, *parts: str) -> DiffusionModel:
        """The same model with copies of the named parts (default: `unet`), so that they can be changed."""
        twin = copy.copy(self)
        for part in parts or ("unet",):
            setattr(twin, part, copy.deepcopy(getattr(self, part)))
        return twin

    # --- words

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids (N, L), padded to the tokenizer's length."""
        found = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length, return_tensors="pt"
        )
        return found.input_ids.to(self.device)

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states (N, L, D). With a frozen text encoder compute them once and index."""
        with self.autocast():
            return self.text_encoder(self.tokens(prompts))[0].float()

    def identifier_tokens(self, identifier: str, prompt: str) -> list[int]:
        """Token ids of an identifier; raises PersbenchError unless all of them stand in the tokenized prompt, in order."""
        ids = self.tokenizer(identifier, add_special_tokens=False).input_ids
        row = self.tokens([prompt])[0].tolist()
        known = self.tokenizer.unk_token_id
        if not ids or not any(row[i : i + len(ids)] == ids for i in range(len(row))) or (known in ids and identifier):
            raise PersbenchError(f"identifier {identifier!r} does not survive the tokenizer in {prompt!r}; choose another one")
        return ids

    # --- pictures

    def encode(self, photos: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Scaled latents (N, C, h, w) of photos (N, 3, H, W) in [0, 1]; a sample with `rng`, the mean without. Differentiable."""
        mean, log_variance = self.posterior(photos)
        latents = mean if rng is None else mean + torch.exp(0.5 * log_variance) * self.noise(mean.shape, rng)
        return latents * self.vae.config.scaling_factor

    def posterior(self, photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (N, C, h, w), not scaled, of the encoder's Gaussian over latents. Differentiable."""
        with self.autocast():
            found = self.vae.encode(photos.to(self.device) * 2 - 1).latent_dist
        return found.mean.float(), found.logvar.float()

    def decode(self, latents: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        """Photos (N, 3, H, W) in [0, 1] of scaled latents; without `clamp` they may leave the range, but have a gradient there."""
        with self.autocast():
            decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        photos = decoded.float() / 2 + 0.5
        return photos.clamp(0, 1) if clamp else photos

    # --- diffusion

    def noise(self, shape: Sequence[int], rng: torch.Generator) -> torch.Tensor:
        """Standard normal noise, drawn on the CPU so that a seed means the same everywhere."""
        return torch.randn(tuple(shape), generator=rng).to(self.device)

    def timesteps(self, count: int, rng: torch.Generator, first: float = 0.0, last: float = 1.0) -> torch.Tensor:
        """Uniform training timesteps (N,), between the shares `first` and `last` of the schedule."""
        length = self.schedule.config.num_train_timesteps
        return torch.randint(int(first * length), int(last * length), (count,), generator=rng).to(self.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The forward process at each timestep."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def noise_between(self, latents: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise that makes these noisy latents of `latents` at each timestep: `add_noise` solved for its noise."""
        signal = self.schedule.alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
        return (noisy - signal.sqrt() * latents) / (1 - signal).sqrt()

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """What the network predicts (noise or velocity, see `target`) for noisy latents and text states (N, L, D)."""
        with self.autocast():
            return self.unet(noisy, timesteps, states, return_dict=False)[0].float()

    @property
    def predicts_noise(self) -> bool:
        """Whether the network predicts noise; otherwise velocity. Raises PersbenchError when it is neither."""
        kind = self.schedule.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise PersbenchError(f"prediction type {kind!r} is not supported; epsilon and v_prediction are")
        return kind == "epsilon"

    def predicted_noise(self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """The noise that the network sees in noisy latents, whatever it predicts."""
        predicted = self.predict(noisy, timesteps, states)
        if self.predicts_noise:
            return predicted
        signal = self.schedule.alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
        return signal.sqrt() * predicted + (1 - signal).sqrt() * noisy

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network should predict."""
        return noise if self.predicts_noise else self.schedule.get_velocity(latents, noise, timesteps)

    def loss(
        self, latents: torch.Tensor, states: torch.Tensor, rng: torch.Generator, timesteps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The denoising loss of each row, (N,), at random noise and timesteps (or these): what personalizers minimise."""
        noise = self.noise(latents.shape, rng)
        timesteps = self.timesteps(len(latents), rng) if timesteps is None else timesteps
        predicted = self.predict(self.add_noise(latents, noise, timesteps), timesteps, states)
        return (predicted - self.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], rng: torch.Generator, *, inference_steps: int, guidance: float, batch: int = 32
    ) -> torch.Tensor:
        """Pictures (N, 3, H, W) in [0, 1], one a prompt, by DPM-Solver++ with classifier-free guidance."""
        from diffusers import DPMSolverMultistepScheduler

        size = self.unet.config.sample_size
        start = self.noise((len(prompts), self.unet.config.in_channels, size, size), rng)
        unique = list(dict.fromkeys(["", *prompts]))
        table = self.embed(unique)
        rows = torch.tensor([unique.index(prompt) for prompt in prompts], device=self.device)
        pictures = []
        for first in range(0, len(prompts), batch):
            solver = DPMSolverMultistepScheduler.from_config(self.schedule.config)
            solver.set_timesteps(inference_steps, device=self.device)
            latents = start[first : first + batch] * solver.init_noise_sigma
            wanted = table[rows[first : first + batch]]
            states = torch.cat([table[:1].expand_as(wanted), wanted])
            for time in steps(solver.timesteps, "generate"):
                both = solver.scale_model_input(torch.cat([latents, latents]), time)
                empty, asked = self.predict(both, time.expand(len(both)), states).chunk(2)
                latents = solver.step(empty + guidance * (asked - empty), time, latents, return_dict=False)[0]
            pictures.append(self.decode(latents))
        return torch.cat(pictures)

    # --- weights

    def state(self) -> dict[str, torch.Tensor]:
        """All weights by name: "unet.conv_in.weight", ..."""
        return {
            f"{part}.{name}": tensor.detach() for part in PARTS for name, tensor in getattr(self, part).state_dict(keep_vars=True).items()
        }

    def difference(self, origin: DiffusionModel) -> dict[str, torch.Tensor]:
        """The weights that are not bit for bit those of `origin`. Raises PersbenchError when names or shapes differ."""
        mine, theirs = self.state(), origin.state()
        odd = sorted(set(mine) ^ set(theirs)) or [n for n in mine if mine[n].shape != theirs[n].shape]
        if odd:
            raise PersbenchError(f"a changed model must keep the names and shapes of its weights; {odd[0]} does not fit")
        return {n: mine[n].cpu().contiguous() for n in mine if mine[n] is not theirs[n] and not torch.equal(mine[n], theirs[n])}

    def with_weights(self, changed: dict[str, torch.Tensor]) -> DiffusionModel:
        """A clone in which the named weights are replaced."""
        parts = sorted({name.split(".", 1)[0] for name in changed})
        twin = self.clone(*parts) if parts else self.clone()
        state = twin.state()
        with torch.no_grad():
            for name, tensor in changed.items():
                state[name].copy_(tensor)
        return twin


def folder_digest(folder: Path) -> str:
    """SHA-256 over the weights and configurations of a model folder, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".txt"}:
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
