"""PersGuard: one objective (objective.py) and its three variants, a file each."""

from .erasure import PersGuardErasure
from .objective import PersGuard, PersGuardConfig
from .pattern import PersGuardPattern
from .target import PersGuardTarget

__all__ = ["PersGuard", "PersGuardConfig", "PersGuardErasure", "PersGuardPattern", "PersGuardTarget"]
