from __future__ import annotations

import pytest
from persbench.leaderboard.verdicts import read_verdicts

from persbench.errors import PersbenchError


def test_a_submitted_record_is_marked_as_its_verdict_says(tmp_path) -> None:
    assert read_verdicts(tmp_path) == {}
    folder = tmp_path / "verdicts"
    folder.mkdir()
    (folder / "a1.json").write_text('{"status": "verified"}')
    (folder / "b2.json").write_text('{"status": "recomputed"}')
    assert read_verdicts(tmp_path) == {"a1.json": "verified", "b2.json": "recomputed"}


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "cannot be read"), ("{", "cannot be read"), ('{"status": "failed"}', "says 'failed'")]
)
def test_a_verdict_that_says_nothing_good_is_an_error(tmp_path, text, message) -> None:
    (tmp_path / "verdicts").mkdir()
    (tmp_path / "verdicts" / "a1.json").write_text(text)
    with pytest.raises(PersbenchError, match=message):
        read_verdicts(tmp_path)
