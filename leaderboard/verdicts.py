"""What `persbench verify --extract` found out about the records of an output folder."""

from __future__ import annotations

import json
from pathlib import Path

from persbench.errors import PersbenchError

KNOWN = ("verified", "recomputed")


def read_verdicts(output: Path) -> dict[str, str]:
    """By the names of submitted records "verified" or "recomputed"; those of own runs have no verdict.

    Raises PersbenchError for a verdict that cannot be read or says something else.
    """
    found = {}
    for path in sorted((output / "verdicts").glob("*.json")):
        try:
            status = json.loads(path.read_text("utf-8"))["status"]
        except (ValueError, KeyError, TypeError):
            raise PersbenchError(f"verdict {path} cannot be read; verify the submission again") from None
        if status not in KNOWN:
            raise PersbenchError(f"verdict {path} says {status!r}; records that do not hold have no place here")
        found[path.name] = status
    return found
