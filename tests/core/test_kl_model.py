"""Costs of ops that read one tensor: by hand, and against what a program counts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.uncertainty import plan_rows
from inc_mp_plugin.stages.sensitivity_arrays import from_arrays, to_arrays

E4M3 = "fp8_e4m3"
OPS = ("q", "k", "v", "gate", "up", "down")
READS = np.array([0, 0, 0, 3, 3, -1])


def sensitivity(alone, shared, rows=1):
    """Six ops, of which three read one tensor, and two another; 10 tokens in each row."""
    alone, shared = (np.broadcast_to(np.array(values, dtype=float), (rows, 6)) for values in (alone, shared))
    nothing = np.zeros((rows, 6))
    return Sensitivity(
        OPS,
        np.ones(rows),
        nothing,
        nothing,
        {E4M3: alone},
        yardstick="kl",
        tokens=np.full(rows, 10.0),
        shared={E4M3: shared},
        reads=READS,
    )


MODEL = KLModel(sensitivity([1, 2, 3, 4, 5, 6], [0.2, 0.4, 0.6, 2, 2.5, 0]), "measured")


@pytest.mark.parametrize(
    ("lowered", "cost"),
    [
        ((), 0.0),
        (("q",), 1.0),
        (("q", "k"), 3.0 + 0.6 / 2),
        (("q", "k", "v"), 6.0 + 1.2),
        (("gate",), 4.0),
        (("gate", "up"), 9.0 + 4.5),
        (("down", "v", "up"), 14.0),
        (OPS, 21.0 + 1.2 + 4.5),
    ],
)
def test_a_share_counts_with_the_part_of_the_others_that_are_lowered(lowered, cost):
    assert MODEL.plan_row_costs(E4M3, lowered) == pytest.approx([cost / 10])
    assert plan_rows(MODEL, dict.fromkeys(lowered, E4M3), "bf16") == pytest.approx([cost / 10])


def test_a_program_counts_shares_whole():
    assert list(MODEL.costs(E4M3).values()) == pytest.approx([0.12, 0.24, 0.36, 0.6, 0.75, 0.6])


def test_in_two_formats_errors_are_not_equal():
    two = sensitivity([1, 2, 3, 4, 5, 6], [0.2, 0.4, 0.6, 2, 2.5, 0])
    both = {E4M3: two.rounding[E4M3], "fp8_e5m2": two.rounding[E4M3]}
    model = KLModel(
        Sensitivity(*(two.ops, two.loss, two.input, two.weight, both), shared=two.shared, reads=READS),
        "measured",
    )
    formats = {"gate": E4M3, "up": "fp8_e5m2"}
    assert plan_rows(model, formats, "bf16") == pytest.approx([9.0])


values = st.lists(st.floats(-1.0, 3.0), min_size=6, max_size=6)


@given(values, values)
def test_a_program_never_counts_too_little(alone, shared):
    """Over all 64 plans; where ops cost less together, nothing is taken off."""
    model = KLModel(sensitivity(np.abs(alone), shared, rows=2), "measured")
    costs = model.costs(E4M3)
    for count in range(7):
        for lowered in itertools.combinations(OPS, count):
            whole = float(model.plan_row_costs(E4M3, lowered).mean())
            assert whole <= sum(costs[op] for op in lowered) + 1e-12
            assert whole >= float(np.abs(alone)[[OPS.index(op) for op in lowered]].sum()) / 10 - 1e-12


def test_uniform_noise_has_no_shares():
    model = KLModel(MODEL.sensitivity, "uniform")
    assert set(model.costs(E4M3).values()) == {0.0}
    assert model.plan_row_costs(E4M3, OPS) == pytest.approx([0.0])


def test_an_op_that_is_left_out_leaves_the_others_theirs():
    without = KLModel(MODEL.sensitivity.of(("q", "v", "up", "down")), "measured")
    assert without.plan_row_costs(E4M3, ("q", "v")) == pytest.approx([(4.0 + 0.8) / 10])
    assert without.plan_row_costs(E4M3, ("up",)) == pytest.approx([0.5])


def test_rows_and_files_keep_them():
    again = from_arrays(to_arrays(MODEL.sensitivity.take(np.array([0, 0]))))
    assert again.reads.tolist() == READS.tolist()
    assert KLModel(again, "measured").plan_row_costs(E4M3, ("gate", "up")) == pytest.approx([1.35, 1.35])
    arrays = to_arrays(MODEL.sensitivity)
    with pytest.raises(ValueError, match="do not fit together"):
        from_arrays({**arrays, "reads": READS[:3]})
