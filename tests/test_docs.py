"""The pages that scripts write are what the scripts write now."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_avatars_says_what_its_records_say() -> None:
    script = runpy.run_path(str(DOCS / "build_avatars.py"))
    assert script["page"]() == (DOCS / "avatars.md").read_text("utf-8")
