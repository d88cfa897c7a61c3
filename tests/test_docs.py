"""The pages that scripts write are what the scripts write now."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_avatars_says_what_its_records_say() -> None:
    script = runpy.run_path(str(DOCS / "build_avatars.py"))
    assert script["page"]() == (DOCS / "avatars.md").read_text("utf-8")


def test_the_page_of_protections_says_what_their_cards_say() -> None:
    script = runpy.run_path(str(DOCS / "build_methods.py"))
    assert script["page"]() == (DOCS / "methods.md").read_text("utf-8")


def test_the_leaderboard_says_what_its_records_say() -> None:
    script = runpy.run_path(str(DOCS / "build_leaderboard.py"))
    assert script["page"]() == (DOCS / "leaderboard.md").read_text("utf-8")
