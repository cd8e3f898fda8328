"""Three faces, one set of keys: a recipe, `mp.tune` and `IPMSEConfig` say the same by the same names.

A new key of a recipe fails here until both Python faces have it, or `REASONS` says why one does not.
"""

import copy
import inspect
from dataclasses import MISSING, asdict, fields
from typing import get_args

import helpers
import pytest
import torch
import yaml
from neural_compressor.torch.quantization import quantize

import inc_mp_plugin as mp
from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.inc.keys import inc_keys
from inc_mp_plugin.pipeline import in_memory
from inc_mp_plugin.pipeline.data import subject_of
from inc_mp_plugin.pipeline.keys_in_memory import heldout_batches
from inc_mp_plugin.pipeline.recipe import Recipe, load_recipe, parse_recipe
from inc_mp_plugin.pipeline.resolve import job_of
from inc_mp_plugin.pipeline.sections import RunSection, Section
from inc_mp_plugin.stages.consumer_scales import method_on_a_cpu
from inc_mp_plugin.strategy.settings import Settings

TUNE, CONFIG = "mp.tune", "IPMSEConfig"
FACES = (TUNE, CONFIG)

AS_IT_IS = "the model is in memory, as it is"
READY = "batches are given ready"
OWN = "calibration is the script's own"
FUNCTION = "`loss_fn` is the function itself"
# {key of a recipe: why the Python faces lack it}; with {face: why} where one of them has it.
REASONS = {
    "model.name_or_path": AS_IT_IS,
    "model.dtype": AS_IT_IS,
    "model.trust_remote_code": AS_IT_IS,
    "model.weights": AS_IT_IS,
    "model.config": AS_IT_IS,
    "model.merge_adapters": "an adapter is merged by its own method, merge_and_unload",
    "model.tokenizer": READY,
    "calibration.data": {TUNE: READY, CONFIG: OWN},
    "calibration.samples": {TUNE: READY, CONFIG: f"{OWN}; `samples` bounds what is kept of it"},
    "calibration.sequence_length": {TUNE: READY, CONFIG: OWN},
    "calibration.batch_size": {TUNE: READY, CONFIG: OWN},
    **{
        f"calibration.{key}": {TUNE: READY, CONFIG: OWN}
        for key in ("split", "subset", "column", "pack", "labels")
    },
    **{f"validation.{key}": READY for key in ("samples", "split", "subset", "column")},
    "loss": FUNCTION,
    "formats": {CONFIG: "INC runs one FP8 format, and its key fp8_config names it"},
}
# {(face, key): why its default is another one than a recipe's}.
OTHER_DEFAULTS = {
    (TUNE, "targets"): "a plan in Python needs no consumer",
    (CONFIG, "targets"): "the consumer is INC on this machine; targets are others beside it",
    (CONFIG, "tau"): "a configuration without arguments must do something, as INC's do",
    (CONFIG, "kv_cache"): "the user's lists decide",
    (CONFIG, "scale_method"): "the key is INC's own",
}
OF_THE_MODEL = ("model", "calibration")


def leaves(model=Recipe, within=""):
    """Yield every key of a recipe, those of sections as `section.key`, with its field."""
    for name, field in model.model_fields.items():
        options = [field.annotation, *get_args(field.annotation)]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
        if section is None:
            yield within + name, field
        else:
            yield from leaves(section, f"{name}.")


LEAVES = dict(leaves())
SIGNATURE = inspect.signature(mp.tune).parameters


def inner_keys(section):
    """The keys that the Python faces know in a section, with their defaults."""
    if section == "validation":
        batches = heldout_batches([torch.zeros(1)])
        return {
            "data": MISSING,
            "random_plans": batches.random_plans,
            "seed": batches.seed,
            "through": batches.through,
        }
    if section == "run":
        return {key: field.default for key, field in RunSection.model_fields.items()}
    known = {"request": mp.Request, "timing": TimingSettings}[section]
    return {field.name: field.default for field in fields(known)}


def keys_of(face):
    """The keys that a face knows, with their defaults."""
    if face == TUNE:
        top = {name: parameter.default for name, parameter in SIGNATURE.items()}
    else:
        # INC's own keys count: a recipe's scale_method is one of them.
        top = {**dict.fromkeys(inc_keys()), **asdict(Settings.of({}))}
    sections = {key.partition(".")[0] for key in LEAVES if "." in key} - set(OF_THE_MODEL)
    inner = {
        f"{section}.{key}": default
        for section in sections & top.keys()
        for key, default in inner_keys(section).items()
    }
    return top | inner


KNOWN = {face: keys_of(face) for face in FACES}


def reason(face, key):
    given = REASONS.get(key, {})
    return given.get(face) if isinstance(given, dict) else given


@pytest.mark.parametrize("face", FACES)
def test_a_face_has_every_key_of_a_recipe_or_a_reason(face):
    lacking = [key for key in LEAVES if key not in KNOWN[face] and not reason(face, key)]
    assert not lacking, f"{face} lacks {lacking}: add them, or say in REASONS why they make no sense there"


def test_no_reason_is_out_of_date():
    assert not set(REASONS) - set(LEAVES), "no key of a recipe"
    stale = [(face, key) for key in REASONS for face in FACES if reason(face, key) and key in KNOWN[face]]
    assert not stale, "a face has what it has a reason to lack"


def test_defaults_are_the_same():
    def default(key):
        field = LEAVES[key]
        return MISSING if field.is_required() else field.default

    different = {
        (face, key)
        for face in FACES
        for key in LEAVES.keys() & KNOWN[face].keys()
        if KNOWN[face][key] != default(key) and inspect.Parameter.empty is not KNOWN[face][key]
    }
    # INC's default of `scale_method` is in the configuration, whose constructor gives it.
    assert different | {(CONFIG, "scale_method")} == set(OTHER_DEFAULTS)


BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(3)]
HELDOUT = [{"input_ids": helpers.tokens(8, 16, seed)} for seed in (10, 11)]
# Bundles of values, none of them a default, that one recipe can hold.
BUNDLES = {
    "a request": {
        "objective": "roofline",
        "device": "h100",
        "request": {"prompt_tokens": 20, "output_tokens": 3, "batch_size": 2},
        "gain_fraction": 0.4,
        "confidence": 0.9,
        "noise": "measured",
        "scale_method": "maxabs_pow2",
        "targets": ["cpu-qdq", "vllm-gaudi"],
        "kv_cache": "fp8",
        "attention": "flash",
        "reuse_cache": True,
    },
    "a divergence": {
        "kl": 0.004,
        "constraint": "kl",
        "run": {"estimator": "batch", "draws": 2, "memory": "low"},
    },
    "a baseline": {"strategy": "random", "seed": 7, "tau": 0.003},
    "a budget": {"strategy": "alps", "budget": 0.7, "objective": "bit_operations"},
    "a closed loop": {
        "tau": 0.02,
        "verify": True,
        "verify_confidence": 0.8,
        "validation": {"data": HELDOUT, "random_plans": 4, "seed": 5},
    },
}
# What these differ in: a job of a recipe has a model and files, and a request even if none is given.
OF_A_FILE = {"model_name", "emits", "recipe", "allowed", "heldout", "request", "scale_method"}


class Caught(Exception):
    """The end of a test that wants a job, not a plan."""


@pytest.fixture
def job_from(monkeypatch, tmp_path):
    """Return a function from a face and keys to the job that the face makes of them."""
    monkeypatch.chdir(tmp_path)
    caught = []

    def catch(job, *_):
        caught.append(job)
        raise Caught

    def make(face, keys):
        keys, model = copy.deepcopy(keys), helpers.language_model("llama")
        if face == "recipe":
            if "validation" in keys:
                keys["validation"] |= {"data": "heldout.jsonl", "samples": 8}
            files = {"model": {"name_or_path": "x", "dtype": "fp32"}, "calibration": {"data": "x.jsonl"}}
            return job_of(parse_recipe({**files, **keys}, [], "recipe"))
        with monkeypatch.context() as patch, pytest.raises(Caught):
            patch.setattr(in_memory, "in_all_processes", catch)
            if face == TUNE:
                mp.tune(model, BATCHES, **{"targets": ["cpu-qdq"], **keys}, out=tmp_path / "out")
            quantize(model, mp.IPMSEConfig(**keys), run_fn=lambda m: [m(**batch) for batch in BATCHES])
        return caught.pop()

    return make


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", BUNDLES)
def test_every_face_makes_the_same_job(job_from, name, face):
    expected, job = job_from("recipe", BUNDLES[name]), job_from(face, BUNDLES[name])
    different = {f.name for f in fields(job) if getattr(job, f.name) != getattr(expected, f.name)}
    assert different <= OF_A_FILE
    # INC's configuration always has a method, if only the default.
    assert method_on_a_cpu(job.scale_method) == method_on_a_cpu(expected.scale_method)
    if expected.heldout is not None:
        for key in ("samples", "random_plans", "seed"):
            assert getattr(job.heldout, key) == getattr(expected.heldout, key)


def test_the_bundles_hold_every_key():
    """But for `timing`, which no CPU measures in FP8, and `formats` and files, which not every face has."""
    held = {key for keys in BUNDLES.values() for key in keys}
    top = {key.partition(".")[0] for key in LEAVES if not reason(CONFIG, key)}
    assert top - held == {"timing"}, "a new key needs a value in one of the bundles"


@pytest.fixture(scope="module")
def faces(tmp_path_factory, project):
    """A function from overrides of the project's recipe to the folders that the three faces leave."""
    base = tmp_path_factory.mktemp("faces")
    lines = (helpers.SHIPPED / "heldout.jsonl").read_text().splitlines()[:16]
    (base / "heldout.jsonl").write_text("\n".join(lines))

    def run(name, keys, validation=None):
        content = yaml.safe_load((project / "recipe.yaml").read_text())
        content = {**content, "targets": ["cpu-qdq"], **keys}
        del content["validation"]
        if validation:
            content["validation"] = {"data": str(base / "heldout.jsonl"), "samples": 8, **validation}
        path, out = base / f"{name}.yaml", base / name
        path.write_text(yaml.safe_dump(content))
        result = helpers.call("tune", path, "--out", out)
        assert result.exit_code == 0, result.output
        recipe = load_recipe(path, [])
        subject = subject_of(recipe)
        if validation:
            loaded = job_of(recipe).heldout.load
            keys = {**keys, "validation": {"data": [*loaded(0), *loaded(8)], **validation}}
        mp.tune(subject.load_model(), subject.batches, **keys, targets=["cpu-qdq"], out=base / f"{name}-tune")
        config = mp.IPMSEConfig(**keys, dump_stats_path=str(base / f"{name}-inc" / "measure"))
        model = quantize(
            subject.load_model(), config, run_fn=lambda model: [model(**batch) for batch in subject.batches]
        )
        patched = {n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")}
        folders = out, base / f"{name}-tune", base / f"{name}-inc" / "ip_mse" / "measure"
        return folders, patched

    return run


PLANS = {
    "roofline": {
        "objective": "roofline",
        "device": "h100",
        "request": {"prompt_tokens": 24, "batch_size": 2},
        "tau": 0.00012,
    },
    "random": {"strategy": "random", "seed": 3, "tau": 0.00012},
}


@pytest.mark.parametrize("name", PLANS)
def test_every_face_makes_the_same_plan(faces, name):
    folders, patched = faces(name, PLANS[name])
    recipe, *others = (helpers.read(folder, "plan.json") for folder in folders)
    lowered = {op for op, format_name in recipe["formats"].items() if format_name != "fp32"}
    assert 0 < len(lowered) < len(recipe["formats"])
    assert patched == lowered
    for plan in others:
        assert plan["formats"] == recipe["formats"]
        for key in ("gain", "loss_mse"):
            assert plan["predicted"][key] == pytest.approx(recipe["predicted"][key], rel=1e-5)


@pytest.mark.slow
def test_every_face_verifies_alike(faces):
    """The same samples are read by the loop and for the report, and the same plans measured."""
    keys = {"tau": 0.0002, "objective": "bit_operations", "verify": True, "verify_confidence": 0.8}
    folders, _ = faces("verified", keys, {"random_plans": 3, "seed": 2})
    loops = [helpers.read(folder, "verification.json") for folder in folders]
    assert len(loops[0]["rounds"]) > 2
    reports = [helpers.read(folder, "validation.json") for folder in folders]
    for loop, report in zip(loops[1:], reports[1:], strict=True):
        assert [r["ops"] for r in loop["rounds"]] == [r["ops"] for r in loops[0]["rounds"]]
        assert loop["chosen"] == loops[0]["chosen"]
        for ours, theirs in zip(loop["rounds"], loops[0]["rounds"], strict=True):
            assert ours["measured_nrmse"] == pytest.approx(theirs["measured_nrmse"], rel=1e-3)
        assert report["nrmse"] == pytest.approx(reports[0]["nrmse"], rel=1e-3)
        assert [p["quantized"] for p in report["points"]] == [p["quantized"] for p in reports[0]["points"]]


def test_serving_means_the_keys_that_took_its_place(job_from):
    keys = {"tau": 0.1, "targets": ["vllm-gaudi"]}
    plain = job_from(TUNE, {**keys, "kv_cache": "fp8", "attention": "flash", "reuse_cache": True})
    with pytest.warns(DeprecationWarning, match="give kv_cache=, attention= and reuse_cache="):
        old = job_from(TUNE, {**keys, "serving": Serving("fp8", "flash", True)})
    assert old == plain
