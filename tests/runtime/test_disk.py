"""Room on a disk, asked for before hours of work."""

import shutil
from types import SimpleNamespace

import pytest
from helpers import call, told

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime.disk import free_on_disk, need_on_disk


def test_of_a_folder_that_is_not_there_yet(tmp_path):
    whole = shutil.disk_usage(tmp_path).total
    assert 0 < free_on_disk(tmp_path / "a" / "b") < whole
    need_on_disk(tmp_path / "a", 1, "a file")
    with pytest.raises(InputError, match=r"a file takes up to .* GB, and .* GB are free where .* make room"):
        need_on_disk(tmp_path / "a", 2 * whole, "a file")


def test_a_full_disk_is_told_before_anything_is_measured(project, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    result = call("tune", project / "recipe.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "0.000001 GB are free" in told(result) or "1e-06 GB are free" in told(result)
    assert not (tmp_path / "out" / "sensitivity.json").exists()
