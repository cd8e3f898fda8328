"""A mixture of experts from calibration to a file, when some experts were sent no token."""

import json

import helpers
import pytest

import inc_mp_plugin as mp


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_that_no_token_reached_keep_their_layer_in_the_base_format(name, tmp_path, caplog):
    model = helpers.language_model(name)
    batches = [{"input_ids": helpers.tokens(1, length=2)}]  # two tokens, two experts each, of four
    plan = mp.tune(model, batches, tau=10.0, targets=["vllm-gaudi"], out=tmp_path)
    missed = json.loads((tmp_path / "sensitivity.json").read_text())["not_reached"]
    assert missed
    assert all(".experts." in op for op in missed)
    assert missed[0] in caplog.text
    for layer in ("model.layers.0.", "model.layers.1."):
        experts = {op for op in plan.formats if op.startswith(layer) and ".experts." in op}
        lowered = experts & set(plan.quantized)
        assert lowered == (set() if any(op.startswith(layer) for op in missed) else experts)
    graph = mp.capture(model, batches[0])
    config = json.dumps(mp.to_inc_config(plan, "vllm-gaudi", graph))
    assert "qkv_proj" in config


def test_with_enough_tokens_all_experts_are_one_decision(tmp_path):
    model = helpers.language_model("qwen3_moe")
    batches = [{"input_ids": helpers.tokens(8, length=24)}]
    plan = mp.tune(model, batches, tau=10.0, targets=["vllm-gaudi"], out=tmp_path)
    assert json.loads((tmp_path / "sensitivity.json").read_text())["not_reached"] == []
    experts = [op for op in plan.formats if ".experts." in op]
    assert set(experts) <= set(plan.quantized)
    (tied,) = {len(tie.ops) for tie in plan.ties if ".experts." in tie.ops[0]}
    assert tied == 3 * 4
