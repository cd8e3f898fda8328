"""Kept logits come back bit by bit, as far as there is room, and leave no file behind."""

from types import SimpleNamespace

import pytest
import torch

from inc_mp_plugin.model import base_logits as module
from inc_mp_plugin.model import divergence
from inc_mp_plugin.model.base_logits import BaseLogits
from inc_mp_plugin.model.distributions import Distributions
from inc_mp_plugin.model.divergence import row_blocks

COUNTED = torch.tensor([[True, True, False], [True, False, True]])


def predicted(dtype=torch.float32, seed=0):
    logits = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(seed))
    return Distributions(logits.to(dtype), COUNTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("block", [1, 30, 2**18])
def test_the_same_blocks_come_back(monkeypatch, tmp_path, dtype, block):
    monkeypatch.setattr(divergence, "_BLOCK", block)
    kept, batches = BaseLogits(tmp_path), [predicted(dtype, seed) for seed in range(2)]
    for number, batch in enumerate(batches):
        kept.keep(number, batch)
    for number, batch in enumerate(batches):
        for _ in range(2):
            pairs = list(zip(kept.blocks(number), row_blocks(batch), strict=True))
            assert len(pairs) == {1: 4, 30: 2, 2**18: 1}[block]
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert kept.blocks(2) is None


def test_no_more_than_fits(monkeypatch, tmp_path):
    size = 4 * 10 * 4
    kept = BaseLogits(tmp_path, most_bytes=2 * size)
    assert [kept.keep(number, predicted()) for number in (0, 1, 2, 0)] == [True, True, False, True]
    assert [kept.blocks(number) is not None for number in range(3)] == [True, True, False]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size - 1))
    narrow = BaseLogits(tmp_path / "narrow")
    assert not narrow.keep(0, predicted())
    assert narrow.blocks(0) is None


def test_a_full_disk_is_no_error(monkeypatch, tmp_path):
    kept = BaseLogits(tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(module, "row_blocks", full)
    kept.keep(0, predicted())
    assert kept.blocks(0) is None
    assert not list(tmp_path.glob(".*/*"))


def test_no_file_is_left(tmp_path):
    (tmp_path / ".base-logits-killed").mkdir()
    kept, other = BaseLogits(tmp_path), BaseLogits(tmp_path)
    kept.keep(0, predicted())
    assert len(list(tmp_path.iterdir())) == 2
    assert kept.blocks(0) is not None
    del kept, other
    assert not list(tmp_path.iterdir())
