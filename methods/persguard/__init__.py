"""PersGuard: one objective (objective.py) and its three variants, a file each.

Nothing is imported here, so that ``persbench list`` starts without torch.
"""
