"""Held-out batches in memory: their two halves, what identifies them, and samples that are no others."""

import copy

import pytest
import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.heldout import HeldOutBatches
from inc_mp_plugin.model.spool import Spool

ROWS = torch.arange(40.0).reshape(20, 2)
SIZES = (3, 8, 1, 8)


def batches(rows=ROWS):
    return [{"x": part, "bias": torch.ones(3)} for part in rows.split(SIZES)]


def rows_of(loaded):
    return torch.cat([batch["x"] for batch in loaded]).tolist()


def test_a_loop_reads_the_second_half_and_the_report_the_first():
    given = HeldOutBatches(batches(), 3, 0)
    heldout = given.heldout(verify=True)
    assert heldout.samples == 10
    first, second = heldout.load(0), heldout.load(heldout.samples)
    assert rows_of(first) == ROWS[:10].tolist()
    assert rows_of(second) == ROWS[10:].tolist()
    assert [len(batch["x"]) for batch in [*first, *second]] == [3, 7, 1, 1, 8]
    assert second[0]["bias"].tolist() == [1.0] * 3  # shared by all samples
    whole = given.heldout(verify=False)
    assert (whole.samples, rows_of(whole.load(0))) == (20, ROWS.tolist())


def test_of_an_odd_number_the_last_is_left_out():
    heldout = HeldOutBatches([ROWS[:19]], 3, 0).heldout(verify=True)
    assert heldout.samples == 9
    assert torch.cat(list(heldout.load(9))).tolist() == ROWS[9:18].tolist()


def test_batches_in_files_are_read_alike():
    of_memory, of_files = (HeldOutBatches(kind(batches()), 3, 0) for kind in (list, Spool))
    loaded = of_files.heldout(verify=True).load(10)
    assert rows_of(loaded) == ROWS[10:].tolist()
    assert [len(batch["x"]) for batch in loaded[1:]] == [1, 8]
    assert of_memory.heldout(verify=True).identify() == of_files.heldout(verify=True).identify()


def test_what_identifies_them():
    def identity(rows, *, verify=False):
        return HeldOutBatches(batches(rows), 3, 0).heldout(verify=verify).identify()

    changed = ROWS.clone()
    changed[19, 1] += 1
    assert identity(ROWS) == identity(ROWS.clone())
    assert identity(ROWS) != identity(changed)
    assert identity(ROWS) != identity(ROWS, verify=True)


def test_a_copy_is_itself():
    given = HeldOutBatches(batches(), 3, 0)
    assert copy.deepcopy({"validation": given})["validation"] is given
    assert given != HeldOutBatches(batches(), 3, 0)


@pytest.mark.parametrize(
    ("size", "verify", "text"),
    [(15, True, "validation holds 15 samples; verify needs at least 16"), (0, False, "holds no batch")],
)
def test_too_few(size, verify, text):
    with pytest.raises(InputError, match=text):
        HeldOutBatches([ROWS[:size]] if size else [], 3, 0).samples(verify=verify)


def test_samples_of_the_calibration_are_refused():
    given = HeldOutBatches(batches(), 3, 0)
    given.check_others([{"x": ROWS + 0.5, "bias": torch.ones(3)}], verify=True)
    with pytest.raises(InputError, match="validation, sample 12: it is a calibration sample; held-out"):
        given.check_others([{"x": ROWS[11:12], "bias": torch.ones(3)}], verify=False)


def test_the_halves_are_different_samples():
    rows = ROWS.clone()
    rows[14] = rows[2]
    HeldOutBatches([rows], 3, 0).check_others([], verify=False)
    with pytest.raises(InputError, match="validation, sample 15: it is among the first 10, too"):
        HeldOutBatches([rows], 3, 0).check_others([], verify=True)


def test_padding_makes_no_other_sample():
    """As a collator pads: to the longest of each batch; an image beside the tokens does."""
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    mask = (ids > 0).long()
    long, short = (
        {
            "input_ids": ids[:, :n],
            "attention_mask": mask[:, :n],
            "labels": ids[:, :n],
            "image": torch.ones(1, 2),
        }
        for n in (5, 3)
    )
    with pytest.raises(InputError, match="validation, sample 1: it is a calibration sample"):
        HeldOutBatches([short], 3, 0).check_others([long], verify=False)
    HeldOutBatches([{**short, "image": torch.zeros(1, 2)}], 3, 0).check_others([long], verify=False)
