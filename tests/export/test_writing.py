"""Checkpoints in files: shards of the source, sums, memory, and a folder that is whole or absent."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import helpers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.export.checkpoint import INDEX, read_checkpoint
from inc_mp_plugin.export.folder import CHECKSUMS


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A model, its checkpoint in several files with a tokenizer and more beside it, and its linear ops."""
    folder = tmp_path_factory.mktemp("source")
    model = helpers.language_model("llama")
    model.save_pretrained(folder, max_shard_size="60KB")
    transformers.AutoTokenizer.from_pretrained(helpers.SHIPPED).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("kept")
    (folder / "pytorch_model.bin").write_bytes(b"not copied")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("not copied")
    return model, read_checkpoint(folder), checkpoints.captured_linear(model)


def test_shards_index_and_sums(sharded, tmp_path):
    model, source, captured = sharded
    out = tmp_path / "deep" / "out"
    lowered = [op for op in captured.ops if "mlp" in op]
    checkpoints.exported(model, source, lowered, out, captured=captured)
    assert len(source.files) > 2
    index = json.loads((out / INDEX).read_text())
    written = checkpoints.tensors(out)
    assert index["weight_map"].keys() == written.keys()
    assert all(checkpoints.file_of(out, name) == file for name, file in index["weight_map"].items())
    for name, stored in source.tensors.items():
        assert index["weight_map"][name] == stored.file
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in written.values())
    assert index["metadata"]["total_size"] == sizes
    lines = (line.split("  ") for line in (out / CHECKSUMS).read_text().splitlines())
    sums = {name: digest for digest, name in lines}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert sums.keys() == files - {CHECKSUMS}
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert {"tokenizer.json", "chat_template.jinja", "extra/notes.txt", "generation_config.json"} <= files
    assert not {"pytorch_model.bin", ".cache/x"} & files
    assert (out / "tokenizer.json").read_bytes() == (source.folder / "tokenizer.json").read_bytes()


@helpers.since_5
def test_what_is_written_loads_in_transformers(sharded, tmp_path):
    """With compressed-tensors it decodes to weights near those of the source, in the planned ops alone."""
    pytest.importorskip("compressed_tensors.compressors.naive_quantized")
    model, source, captured = sharded
    lowered = [op for op in captured.ops if "mlp" in op]
    checkpoints.exported(model, source, lowered, tmp_path / "out", captured=captured)
    config = transformers.CompressedTensorsConfig(run_compressed=False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", quantization_config=config)
    for op in captured.ops:
        own, other = (each.get_submodule(op).weight for each in (model, loaded))
        assert torch.equal(own, other.float()) == (op not in lowered)
        assert torch.allclose(own, other.float(), atol=float(own.abs().amax()) / 16)


@pytest.mark.parametrize("content", ["file", "folder"])
def test_a_folder_that_holds_something_is_left_alone(sharded, tmp_path, content):
    model, source, captured = sharded
    out = tmp_path / "out"
    if content == "folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        checkpoints.exported(model, source, captured.ops, out, captured=captured)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled(sharded, tmp_path):
    model, source, captured = sharded
    checkpoints.exported(model, source, captured.ops, tmp_path, captured=captured)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = helpers.language_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 2] = value
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj"):
        checkpoints.exported(model, source, captured.ops, tmp_path / "out", captured=captured)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


_EXPORT = """
import sys, threading, time
from pathlib import Path
from inc_mp_plugin.export.checkpoint import read_checkpoint
from inc_mp_plugin.export.folder import Content, write_checkpoint
from inc_mp_plugin.export.places import Place

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
most = 0
def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.001)

source = read_checkpoint(Path(sys.argv[1]))
places = {name: Place(name, f"{name}.weight") for name in sys.argv[3].split(",")}
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
write_checkpoint(Content(source, places, None, {}), Path(sys.argv[2]))
print(most - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with three shards of 96 MiB each: two matrices in FP32, of which one is planned in FP8."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text("{}")
    for number in range(3):
        matrices = {f"{number}.{kind}.weight": torch.ones(3072, 4096) for kind in ("low", "base")}
        save_file(matrices, folder / f"{number}.safetensors")
    return folder


LOWERED = "0.low,1.low,2.low"
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@on_linux
def test_memory_is_below_one_shard(large, tmp_path):
    command = [sys.executable, "-c", _EXPORT, str(large), str(tmp_path / "out"), LOWERED]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    shard = (large / "0.safetensors").stat().st_size
    assert int(result.stdout) < shard
    assert checkpoints.tensors(tmp_path / "out")["2.low.weight"].dtype == torch.float8_e4m3fn


@on_linux
@pytest.mark.parametrize("sign", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_export_leaves_no_folder(large, tmp_path, sign):
    """Killed while the second file is written; the next export takes the place."""
    out, aside = tmp_path / "out", tmp_path / ".out.partial"
    command = [sys.executable, "-c", _EXPORT, str(large), str(out), LOWERED]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    )
    while not (aside / "1.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, sign)
    process.wait(timeout=60)
    assert process.returncode != 0
    assert not out.exists()
    assert aside.exists() == (sign == signal.SIGKILL)
    subprocess.run(command, capture_output=True, check=True)
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        INDEX,
        CHECKSUMS,
        *(f"{number}.safetensors" for number in range(3)),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
