import helpers
import pytest

import inc_mp_plugin as mp
from inc_mp_plugin.emission import emit
from inc_mp_plugin.errors import SelectionError


def planned(name):
    model, batches = helpers.language_model(name), [{"input_ids": helpers.tokens(2)}]
    graph = mp.capture(model, batches[0])
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
    return mp.solve(gains, mp.measure_sensitivity(model, graph, batches), tau=1.0), graph


def test_fused_experts_have_other_names_on_optimum_habana(tmp_path):
    """There they are linear modules, which a list of this graph's names would not block."""
    plan, graph = planned("mixtral")
    with pytest.raises(SelectionError, match="holds the experts of model.layers.0.mlp.experts as"):
        emit(plan, graph, "optimum-habana", tmp_path)
    assert not list(tmp_path.iterdir())
    assert emit(plan, graph, "cpu-qdq", tmp_path).exists()


def test_a_refused_file_leaves_no_older_one_behind(tmp_path):
    path = tmp_path / "configs" / "cpu-qdq.json"
    path.parent.mkdir()
    path.write_text("of another plan")
    plan, graph = planned("llama")
    broken = mp.Graph(graph.ops, graph.groups, graph.unsupported, {})
    with pytest.raises(SelectionError, match="INC would not quantize lm_head"):
        emit(plan, broken, "cpu-qdq", tmp_path)
    assert not path.exists()
