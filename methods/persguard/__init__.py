"""PersGuard: one objective (objective.py) and its three variants, a file each. Nothing is imported here: `persbench list` needs no torch."""
