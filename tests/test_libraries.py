"""What we lean on in other libraries, each tried by itself: a failure names the library that changed."""

import copy
import json
import logging
import os
import subprocess
import sys
import warnings
from collections import namedtuple
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec

import helpers
import pytest
import torch
import transformers
from torch import nn

from inc_mp_plugin.inc import backend
from inc_mp_plugin.libraries import logs
from inc_mp_plugin.libraries import torch as of_torch
from inc_mp_plugin.libraries import transformers as of_transformers

BATCH = {"input_ids": helpers.tokens(2, 8)}
PACKAGES = {"inc": "neural-compressor", "lm": "lm-eval"}


@pytest.fixture(autouse=True)
def _named(request):
    """Say beside a failure which library it is of, and its version."""
    library = request.node.originalname.split("_")[1]
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version(PACKAGES.get(library, library))
        request.node.add_report_section("call", "cause", f"{library} {version} has changed")


def modules_of(model, kind):
    return [module for module in model.modules() if type(module).__name__ == kind]


def test_torch_trees():
    Pair = namedtuple("Pair", "a b")
    tree = {"x": [torch.ones(1), 2], "y": Pair(None, (torch.ones(2),))}
    assert [str(leaf) for leaf in of_torch.leaves(tree)] == ["tensor([1.])", "2", "None", "tensor([1., 1.])"]
    mapped = of_torch.map_tensors(lambda t: len(t), tree)
    assert mapped == {"x": [1, 2], "y": Pair(None, (2,))}
    assert type(mapped["y"]) is Pair
    assert of_torch.map_leaves(str, tree)["y"] == Pair("None", ("tensor([1., 1.])",))


def test_torch_parameters_buffers_and_children():
    module = nn.Linear(2, 2)
    other = copy.copy(module)
    of_torch.give_parameters(other, dict(of_torch.parameters_of(module)))
    of_torch.parameters_of(other)["weight"] = nn.Parameter(torch.zeros(2, 2))
    assert torch.equal(other(torch.ones(1, 2))[0], module.bias)
    assert list(of_torch.parameters_of(other)) == ["weight", "bias"]
    assert module.weight.any()
    assert of_torch.buffers_of(nn.BatchNorm1d(2, track_running_stats=False)) == {
        "running_mean": None,
        "running_var": None,
        "num_batches_tracked": None,
    }
    holder = nn.Module()
    of_torch.children_of(holder)["0"] = module
    assert dict(holder.named_modules())["0"] is module


def test_torch_hooks_of_a_copy_come_off_by_their_number():
    module, calls = nn.Linear(2, 2), []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(1), with_kwargs=True)
    other = copy.deepcopy(module)
    other(torch.ones(1, 2))
    of_torch.remove_pre_hook(other, handle.id)
    other(torch.ones(1, 2))
    module(torch.ones(1, 2))
    assert len(calls) == 2


def test_torch_versions_and_views():
    tensor = torch.ones(2, 2)
    before, view = of_torch.version_of(tensor), tensor[0]
    view.add_(1)
    assert of_torch.version_of(tensor) == before + 1
    assert of_torch.viewed(view) is tensor
    assert of_torch.viewed(tensor) is tensor


def test_torch_compiled_models():
    model = nn.Linear(2, 2)
    compiled = torch.compile(model)
    assert of_torch.is_compiled(compiled)
    assert not of_torch.is_compiled(model)
    assert getattr(compiled, of_torch.ORIGINAL) is model


def test_torch_operators():
    mm = torch.ops.aten.mm
    assert of_torch.is_overload(mm.default)
    assert not any(map(of_torch.is_overload, (mm, torch.mm)))
    assert [of_torch.operator_name(f) for f in (mm, mm.default, torch.mm)] == [
        "aten.mm",
        "aten.mm.default",
        "",
    ]
    assert of_torch.schema_name(mm.default) == "mm"
    assert "_grouped_mm" in of_torch.GROUPED_PRODUCTS
    assert of_torch.schema_name(torch.ops.aten._grouped_mm.default) == "_grouped_mm"


def test_torch_operators_are_replaced_in_backward_passes_too():
    """Autograd sees a plain product, whose gradient is one, too; inside of the function a product is one."""
    value, weight = torch.ones(2, 2, requires_grad=True), torch.eye(2)
    with of_torch.ReplacedOperators({"mm": lambda a, b: 2 * torch.mm(a, b)}):
        product = value @ weight
        product.sum().backward()
    assert product.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert value.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert (value @ weight).tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FP8 products are of CUDA")
def test_torch_fp8_products():
    a, b = (torch.randn(16, 16, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    scales = torch.tensor(2.0, device="cuda"), torch.tensor(0.5, device="cuda")
    result = of_torch.scaled_product(a, b.t(), scales, bias=None, out_dtype=torch.bfloat16)
    torch.testing.assert_close(result.float(), a.float() @ b.float().t(), rtol=1e-2, atol=1e-2)


def test_torch_fp8_products_take_these_arguments():
    schema = str(torch.ops.aten._scaled_mm.default._schema)
    assert all(name in schema for name in ("scale_a", "scale_b", "bias", "out_dtype"))
    assert callable(torch._scaled_mm)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_torch_convolutions(mode, padding):
    op = nn.Conv2d(2, 4, 3, padding=padding, padding_mode=mode, groups=2, dilation=2)
    value = torch.randn(2, 2, 9, 9)
    torch.testing.assert_close(of_torch.convolve(op, value, op.weight), op(value))
    by_hand = nn.functional.conv2d(of_torch.padded(op, value), op.weight, op.bias, groups=2, dilation=2)
    torch.testing.assert_close(by_hand, op(value))


def test_torch_exports_without_waste():
    model, before = nn.Linear(2, 2), torch.fx.config.__dict__.get("do_not_emit_stack_traces")
    with of_torch.without_stack_traces(), of_torch.lazy_graphs():
        nodes = torch.export.export(model, (torch.ones(1, 2),), strict=False).graph.nodes
    assert [of_torch.schema_name(n.target) for n in nodes if n.op == "call_function"] == ["linear"]
    assert torch.fx.config.__dict__.get("do_not_emit_stack_traces") == before


def test_torch_computes_while_it_traces():
    class Model(torch.nn.Module):
        def forward(self, x):
            with of_torch.without_modes():
                length = int(torch.arange(3).sum())
            return x.new_ones(length)

    program = torch.export.export(Model(), (torch.zeros(1),), strict=False)
    assert program.module()(torch.zeros(1)).shape == (3,)


def test_torch_autocast_on_meta():
    original = torch.autocast
    with of_torch.without_autocast_on("meta"):
        with torch.autocast("meta", enabled=False):
            pass
        with torch.autocast("cpu", torch.bfloat16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert torch.autocast is original


def test_transformers_attention_by_name():
    model = helpers.language_model("llama")
    before = of_transformers.implementations_of(model)
    assert {"", "model", "model.layers.0.self_attn"} <= before.keys()
    seen = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask)
        return of_transformers.eager_attention(module)(module, query, key, value, attention_mask, **kwargs)

    expected = model(**BATCH).logits
    of_transformers.register_attention("ours", attention)
    of_transformers.implement(model, {**dict.fromkeys(before, "ours"), "gone": "ours"})
    torch.testing.assert_close(model(**BATCH).logits, expected)
    assert len(seen) == 2
    assert bool((seen[0] < 0).triu(1).any())  # causal, and added
    of_transformers.implement(model, before)
    assert of_transformers.implementations_of(model) == before


def test_transformers_attention_is_recognized():
    model = helpers.language_model("llama")
    attention = model.model.layers[0].self_attn
    assert of_transformers.asks_for_attention(type(attention))
    assert not of_transformers.asks_for_attention(type(model.model.layers[0].mlp))
    assert of_transformers.eager_attention(attention) is not None
    assert of_transformers.eager_attention(nn.Linear(2, 2)) is None


def test_transformers_sdpa_is_supported_or_not():
    assert of_transformers.supports_sdpa(helpers.language_model("llama"))
    assert not of_transformers.supports_sdpa(nn.Linear(2, 2))
    assert not of_transformers.supports_sdpa(helpers.language_model("gpt_oss"))  # it has sinks


@pytest.mark.skipif(
    not find_spec("transformers.integrations.moe"), reason="experts are lists of modules here"
)
def test_transformers_fused_experts():
    experts = modules_of(helpers.mixture("mixtral"), "MixtralExperts")[0]
    assert of_transformers.asks_for_experts(type(experts))
    assert not of_transformers.asks_for_experts(nn.Linear)
    both = torch.randn(3, 8)
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(of_transformers.gate_of(experts)(both), nn.functional.silu(gate) * up)
    bare = nn.Module()
    bare.act_fn = torch.relu
    torch.testing.assert_close(of_transformers.gate_of(bare)(both), torch.relu(gate) * up)


@pytest.mark.slow
def test_transformers_knows_the_commit_of_a_model_of_the_hub(tmp_path):
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--some--model"
    transformers.LlamaConfig().save_pretrained(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    code = (
        "from inc_mp_plugin.model.loading import model_fingerprint\n"
        "print(model_fingerprint('some/model', trust_remote_code=False))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == f"some/model@{commit}\n", result.stderr


def test_transformers_save_under_the_names_of_modules(tmp_path):
    from safetensors import safe_open

    model = helpers.mixture("mixtral")
    model.save_pretrained(tmp_path / "first")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    of_transformers.save_under_own_names(loaded)
    loaded.save_pretrained(tmp_path / "second")
    with safe_open(tmp_path / "second" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(dict(loaded.named_parameters()))


@pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static cache"])
def test_transformers_caches(static):
    """A decode step gives the logits of the whole; no argument and no output is about to go."""
    model, ids = helpers.language_model("llama"), BATCH["input_ids"]

    def cached(cache):
        return {"use_cache": True, **of_transformers.cache_argument(model.forward, cache)}

    first = of_transformers.new_static_cache(model, samples=2, length=8) if static else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert not of_transformers.holds_states(first)
        cache = of_transformers.cache_of(model(input_ids=ids[:, :-1], **cached(first)))
        assert of_transformers.is_cache(cache)
        assert of_transformers.holds_states(cache)
        step = model(input_ids=ids[:, -1:], **cached(cache)).logits
    torch.testing.assert_close(step[:, -1], model(**BATCH).logits[:, -1], rtol=1e-4, atol=1e-5)


def test_transformers_generation_names_its_arguments():
    """Masks, positions and tokens of a later step, by which a cache inside a model is told."""
    model, calls = helpers.language_model("llama"), []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    model.generate(**BATCH, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert calls[1][of_transformers.IDS].shape == (2, 1)
    assert calls[1][of_transformers.MASK].shape == (2, 9)
    positions = [value for name, value in calls[1].items() if name in ("position_ids", "cache_position")]
    assert all(int(value.min()) > 0 for value in positions)


def test_inc_tables_and_lists():
    hpu, cpu = (backend.device_table(device) for device in ("hpu", "cpu"))
    assert {"Linear", "Matmul", "KVCache", "ModuleFusedSDPA"} <= hpu.keys()
    assert {"Linear", "Matmul", "Conv2d"} <= cpu.keys()
    modules = {"a.q": "Linear", "a.k": "Linear", "a.norm": "LayerNorm"}
    lists = {"allowlist": {"types": [], "names": ["q"]}, "blocklist": {"types": [], "names": []}}
    settings = {**lists, "dynamic_quantization": False}
    assert backend.picked_by_inc(modules, settings, hpu) == ["a.q"]
    assert backend.refused_values({"observer": "maxabs", "scale_method": "largest"}).keys() == {
        "scale_method"
    }


def test_inc_configurations():
    from neural_compressor.torch.quantization import FP8Config

    keys = backend.keys_of(FP8Config(scale_method="maxabs_pow2"))
    assert {"scale_method", "allowlist", "blocklist", "dump_stats_path", "use_qdq"} <= keys.keys()
    assert not {"_json_file", "params_list", "non_tunable_params", "model_path"} & keys.keys()
    json.dumps(keys)  # they go into a file


def test_inc_modules_in_the_place_of_others(tmp_path, monkeypatch):
    from neural_compressor.torch.quantization import FP8Config, convert, prepare

    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    given = copy.deepcopy(model[0])
    prepared = prepare(model, FP8Config(use_qdq=True, scale_method="maxabs_arbitrary"))
    prepared(torch.randn(3, 4))
    low = convert(prepared)[0]
    assert backend.is_patched(low)
    assert not backend.is_patched(given)
    quantizers = backend.quantizers_of(low)
    assert len(quantizers.inputs) == 1
    assert "weight" in quantizers.params
    expected = low.weight.detach().clone()
    torch.testing.assert_close(backend.quantized_weight(given, low), expected)
    backend.forget_quantizer(model)
    assert not hasattr(model, "quantizer")
    backend.forget_models()


def test_inc_wrappers_in_half_precision():
    from neural_compressor.torch.quantization import MixedPrecisionConfig, convert

    model = convert(nn.Sequential(nn.Linear(4, 4)), MixedPrecisionConfig(dtype="bf16"))
    assert backend.is_half_precision(model[0])
    assert model[0].module.weight.shape == (4, 4)
    assert model[0].dtype == torch.bfloat16


def test_torch_complains_of_trees_by_this_name():
    assert logging.getLogger(logs.LOGGERS[-1]) is torch.utils._pytree.log


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_makes_a_model_in_a_dtype(dtype):
    settings = of_transformers.in_dtype(dtype)
    model = transformers.AutoModelForCausalLM.from_config(helpers.small_config(), **settings)
    assert next(model.parameters()).dtype == dtype
