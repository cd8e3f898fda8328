"""`strategy: ip_mse` inside of optimum-habana's own sequence: measure in one process, quantize in another."""

import pytest
from choices import patched
from emulation import _fresh_process, _generate, run
from models import NAMES, gaudi
from neural_compressor.torch.quantization import convert, finalize_calibration, prepare

import inc_mp_plugin as mp

NO_CACHE = {"names": ["[kv]_cache"], "types": []}


@pytest.fixture(autouse=True)
def _registered():
    mp.register()


def planned(name, folder, attention, *, blocklist=None, **ours):
    """What optimum-habana's script does in two runs, with a file that names the strategy."""
    content = {
        "dump_stats_path": str(folder / "measure"),
        "scale_method": "maxabs_hw",
        "ip_mse": {"attention": attention, "objective": "theoretical_time", **ours},
        "blocklist": blocklist or {"names": [], "types": []},
        "allowlist": {"names": [], "types": []},
    }
    with _fresh_process({**content, "mode": "MEASURE"}) as config:
        model = prepare(gaudi(name), config)
        _generate(model, attention, 3, reuse_cache=False, bucket_size=0)
        finalize_calibration(model)
    with _fresh_process({**content, "mode": "QUANTIZE"}) as config:
        return convert(gaudi(name), config)


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
@pytest.mark.parametrize("attention", ["eager", "flash"])
@pytest.mark.parametrize("name", NAMES)
def test_the_plan_runs(name, attention, cache, tmp_path):
    blocklist = NO_CACHE if cache == "bf16" else None
    model = planned(name, tmp_path, attention, tau=0.02, blocklist=blocklist)
    found = patched(model)
    assert "PatchedUnmeasuredModule" not in found.values()
    assert any(one.endswith(("_proj", "w1")) for one in found)
    assert any(one.endswith("_cache") for one in found) == (cache == "fp8")
    if attention == "flash":
        assert not any("matmul" in one for one in found)
    run(model, attention=attention, new_tokens=2)


def test_the_cache_stays_where_the_key_says_so(tmp_path):
    """The lists let the cache be in FP8."""
    found = patched(planned(NAMES[0], tmp_path, "eager", tau=0.02, kv_cache="bf16"))
    assert any(one.endswith("_proj") for one in found)
    assert not any(one.endswith("_cache") for one in found)


def test_time_of_a_request_is_modelled(tmp_path):
    request = {"prompt_tokens": 16, "output_tokens": 8}
    ours = {"objective": "roofline", "device": "gaudi2", "request": request}
    model = planned(NAMES[0], tmp_path, "eager", tau=0.02, **ours)
    assert patched(model)
    run(model, attention="eager", new_tokens=2)
