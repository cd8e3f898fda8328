"""Sensitivities whose logits are computed for some tokens at a time."""

import itertools

import helpers
import numpy as np
import pytest
import torch

from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model import tail
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays

MEASURED = {"scales": Scales("maxabs_pow2", "cpu"), "formats": ("fp8_e4m3",)}


def batches():
    """Two batches, of which the second has padding on its left."""
    ids = helpers.tokens(5)
    mask = torch.ones_like(ids[2:])
    mask[0, :4] = 0
    return [
        {"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2])},
        {"input_ids": ids[2:], "attention_mask": mask},
    ]


CASES = itertools.product(["llama", "mixtral"], ["loss", "kl", "both"], [False, True], ["sample", "batch"])
QUICK = (
    ("llama", "both", True, "sample"),
    ("mixtral", "kl", True, "batch"),
    ("llama", "loss", False, "sample"),
)


@pytest.mark.parametrize(
    ("name", "kind", "measured", "rows"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_the_same_as_from_all_logits_at_once(name, kind, measured, rows, monkeypatch):
    model = helpers.language_model(name)
    graph = capture(model, batches()[0])
    estimate = None if kind == "loss" else Estimate(rows, draws=2)
    keywords = {"yardstick": kind, "estimate": estimate, **(MEASURED if measured else {})}
    whole = measure_sensitivity(model, graph, batches(), memory="high", **keywords)
    before, shapes = helpers.state(model), set()
    monkeypatch.setattr(tail, "LOGITS_AT_ONCE", 2 * model.config.vocab_size * 5)
    with model.lm_head.register_forward_hook(lambda _, args, output: shapes.add(tuple(output.shape[:2]))):
        parts = measure_sensitivity(model, graph, batches(), memory="low", **keywords)
    helpers.assert_same_state(before, helpers.state(model))
    assert (2, 5) in shapes
    if whole.measured_drift is not None:
        assert parts.measured_drift.value == pytest.approx(whole.measured_drift.value, rel=1e-6)
    ours, theirs = to_arrays(parts), to_arrays(whole)
    assert set(ours) == set(theirs)
    for key, array in ours.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, theirs[key], rtol=1e-6, err_msg=key)
        else:
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)
