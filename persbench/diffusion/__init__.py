"""Latent diffusion models behind one interface; one adapter per model family."""

from .model import DiffusionModel
from .training import finetune

__all__ = ["DiffusionModel", "finetune"]
