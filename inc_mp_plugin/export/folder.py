"""A plan's checkpoint: written aside, file by file, and renamed when it is whole."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.export.casts import row_scales, rows_cast, whole_cast
from inc_mp_plugin.export.checkpoint import INDEX, Checkpoint
from inc_mp_plugin.export.places import WEIGHT, Place
from inc_mp_plugin.export.scales import StaticScales
from inc_mp_plugin.export.writing import Coming, write_tensors
from inc_mp_plugin.runtime.progress import tracked
from inc_mp_plugin.runtime.store import file_fingerprint, write_json

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUMS = "SHA256SUMS"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx"}
_FP8, _FP32 = "F8_E4M3", "F32"


@dataclass(frozen=True)
class Content:
    """Content of a checkpoint to be written.

    `places` are the weights of the ops in FP8, `scales` their static scales, or None for the scheme
    "dynamic", and `quantization` is the `quantization_config` of config.json.
    """

    source: Checkpoint
    places: Mapping[str, Place]
    scales: Mapping[str, StaticScales] | None
    quantization: Mapping[str, Any]


def write_checkpoint(content: Content, out: Path) -> None:
    """Write a checkpoint into a new folder: the files of the source, one by one, and all beside them.

    The folder is there when it is whole, and not before. SHA256SUMS holds the hash of every file.

    Args:
        content: of the checkpoint.
        out: the folder; it must be empty, or not be there.

    Raises:
        InputError: the folder holds files, or cannot be written.
        NonFiniteError: a NaN or an infinity in a weight.
    """
    try:
        with _new_folder(out) as aside:
            _copy_others(content.source.folder, aside)
            write_json(
                aside / "config.json",
                {**content.source.config, "quantization_config": dict(content.quantization)},
            )
            hashes = _write_files(content, aside)
            others = sorted(p for p in aside.rglob("*") if p.is_file() and p.name not in hashes)
            hashes |= {p.relative_to(aside).as_posix(): file_fingerprint(p) for p in others}
            lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
            (aside / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        message = f"{out} cannot be written: {error.strerror or error}"
        raise InputError(message) from None


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside another, which takes that place if all goes well, and is gone otherwise."""
    check_free(out)
    out = out.resolve()
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_free(out: Path) -> None:
    """Check that a folder is empty, or not there.

    Raises:
        InputError: it holds files, or is no folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        message = f"{out} is there already; give a folder that is empty or not there by --out"
        raise InputError(message)


def _copy_others(source: Path, aside: Path) -> None:
    """Copy all but weights and hidden files: tokenizer, templates, code."""
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        hidden = any(part.startswith(".") for part in place.parts)
        weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
        if path.is_file() and not hidden and not weights and place.as_posix() != CHECKSUMS:
            (aside / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / place)


def _write_files(content: Content, aside: Path) -> dict[str, str]:
    """Write the tensors and their index; return the hashes of the files of tensors."""
    source = content.source
    owners: dict[str, list[str]] = defaultdict(list)
    for op, place in content.places.items():
        owners[place.tensor].append(op)
    hashes, index, total = dict[str, str](), dict[str, str](), 0
    with tracked(source.files, "Export", noun="file") as files:
        for file in files:
            coming: list[Coming] = []
            for name in (name for name, stored in source.tensors.items() if stored.file == file):
                if name in owners:
                    coming += [tensor for op in owners[name] for tensor in _lowered(content, op)]
                else:
                    stored = source.tensors[name]
                    coming.append(Coming(name, stored.dtype, stored.shape, partial(source.slabs, name)))
            hashes[file] = write_tensors(aside / file, coming)
            index |= {tensor.name: file for tensor in coming}
            total += sum(tensor.bytes for tensor in coming)
    write_json(aside / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    return hashes


def _lowered(content: Content, op: str) -> Iterator[Coming]:
    """Yield the tensors of an op in FP8: its weight and its scales."""
    source, place = content.source, content.places[op]
    shape, slabs = place.shape(source), partial(place.slabs, source)
    weight, scale = f"{place.module}{WEIGHT}", f"{place.module}.weight_scale"
    if content.scales is None:
        dtype = source.tensors[place.tensor].dtype
        yield Coming(weight, _FP8, shape, lambda: rows_cast(slabs(), op))
        yield Coming(scale, dtype, (shape[0], 1), lambda: row_scales(slabs(), op))
        return
    own = content.scales[op]
    yield Coming(weight, _FP8, shape, lambda: whole_cast(slabs(), own.weight, own.dtype))
    yield Coming(scale, _FP32, (1,), lambda: _single(own.weight.factor))
    yield Coming(f"{place.module}.input_scale", _FP32, (1,), lambda: _single(own.input.factor))


def _single(number: Tensor) -> Iterator[Tensor]:
    yield number.to(torch.float32).reshape(1)
