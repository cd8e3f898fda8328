import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import FORMATS, alpha, check_formats, get_format


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fp8_e4m3", 1 / 768), ("fp8_e5m2", 1 / 192), ("bf16", 2.0**-14 / 12), ("fp32", 2.0**-46 / 12)],
)
def test_alpha_by_hand(name, expected):
    assert alpha(name) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2"])
def test_bits_and_bytes_are_those_of_torch(name):
    import torch

    dtype = {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
        "fp8_e4m3": torch.float8_e4m3fn,
        "fp8_e5m2": torch.float8_e5m2,
    }[name]
    assert torch.finfo(dtype).eps == 2.0 ** -FORMATS[name].mantissa_bits
    assert dtype.itemsize == FORMATS[name].bytes


@pytest.mark.parametrize(("name", "size"), [("int8", 1.0), ("int4", 0.5), ("int2", 0.25)])
def test_integers_have_a_size_and_no_relative_noise(name, size):
    assert FORMATS[name].bytes == size
    assert FORMATS[name].is_integer
    with pytest.raises(InputError, match="has to be measured"):
        alpha(name)


@pytest.mark.parametrize("formats", [("bf16", "fp16"), ("fp16", "bf16"), ("fp16", "int8"), ("int4", "int2")])
def test_which_formats_are_coarser(formats):
    if formats == ("bf16", "fp16"):
        with pytest.raises(InputError, match="not coarser"):
            check_formats(formats)
    else:
        assert check_formats(formats) == formats


def test_unknown_format_suggests():
    with pytest.raises(InputError, match="did you mean 'fp8_e4m3'"):
        get_format("fp8_e4m")


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["bf16"], "at least one other"),
        (["bf16", "bf16"], "each once"),
        (["bf16", "fp32"], "not coarser than the base"),
        (["fp8_e5m2", "fp8_e4m3"], "not coarser than the base"),
        (["int4", "int8"], "not coarser than the base"),
        (["int8", "fp8_e4m3"], "not coarser than the base"),
    ],
)
def test_formats_that_make_no_sense(formats, message):
    with pytest.raises(InputError, match=message):
        check_formats(formats)
