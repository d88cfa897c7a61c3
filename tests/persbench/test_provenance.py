"""Keys change with the code that a plug-in runs, and with nothing else."""

from __future__ import annotations

import importlib
import sys

import pytest

from persbench import provenance


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes the three modules of a small package and gives the digest of its plug-in class."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "small_package"
    folder.mkdir()

    def write(plugin: str = "", helper: str = "", other: str = "") -> str:
        (folder / "__init__.py").write_text("")
        (folder / "plugin.py").write_text(f"from .helper import factor\n\nclass Plugin:\n    {plugin or 'value = factor'}\n")
        (folder / "helper.py").write_text(f"{helper}\nfactor = 2\n")
        (folder / "other.py").write_text(other)
        for name in [name for name in sys.modules if name.startswith("small_package")]:
            del sys.modules[name]
        provenance._code.cache_clear()
        importlib.invalidate_caches()
        return provenance.source_digest(importlib.import_module("small_package.plugin").Plugin)

    yield write
    provenance._code.cache_clear()


def test_helpers_count_and_comments_do_not(package) -> None:
    plain = package()
    assert plain == package(helper="# a remark", other="unrelated = 1")
    assert plain == package(helper='"""What it is."""')
    assert plain != package(plugin="value = 3")
    assert plain != package(helper="more = 1")


def test_a_built_in_method_follows_the_diffusion_model_and_not_the_pipeline() -> None:
    from persbench.methods.persguard.target import PersGuardTarget

    provenance.source_digest(PersGuardTarget)
    assert "persbench.diffusion.model" in provenance._code("persbench.diffusion")[1]
    _, imported = provenance._code("persbench.methods.persguard.target")
    assert "persbench.methods.persguard.objective" in imported
