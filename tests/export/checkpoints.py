"""Exported checkpoints, and what else several tests of exports need."""

import json
from pathlib import Path

import helpers
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import inc_mp_plugin as mp
from inc_mp_plugin.export.checkpoint import read_checkpoint
from inc_mp_plugin.export.folder import Content, write_checkpoint
from inc_mp_plugin.export.places import linear_modules, places_of
from inc_mp_plugin.export.settings import quantization_config
from inc_mp_plugin.model.expert_stacks import order_of
from inc_mp_plugin.targets.layout import Captured

BATCH = {"input_ids": helpers.tokens(2)}


def captured_linear(model):
    """The linear ops of a model, as a target sees them."""
    graph = mp.capture(model, BATCH)
    linear = tuple(op.name for op in graph.ops if op.kind == "linear")
    return Captured(linear, graph.modules, Captured.of(graph).tied)


def saved(model, folder, **options):
    """A model's checkpoint in a folder."""
    model.save_pretrained(folder, **options)
    return read_checkpoint(folder)


def exported(model, source, lowered, out, *, captured, scales=None):
    """Write a checkpoint with these ops in FP8; return their places, which `scales` makes scales of."""
    places, reasons = places_of(captured.ops, source, lambda name: order_of(model.get_submodule(name)))
    in_fp8 = {op: places[op] for op in lowered}
    modules = {place.module for place in in_fp8.values()}
    others = set(linear_modules(source, captured.modules, places)) - modules
    others |= captured.tied & reasons.keys()
    scheme, scales = ("dynamic", None) if scales is None else ("static", scales(in_fp8))
    content = Content(source, in_fp8, scales, quantization_config(scheme, modules, others))
    write_checkpoint(content, out)
    return in_fp8


def tensors(folder):
    """All tensors of a folder."""
    return {
        name: tensor
        for path in Path(folder).glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def config(folder):
    """Content of config.json."""
    return json.loads((Path(folder) / "config.json").read_text())


def same(left, right):
    """Tell if two tensors are equal bit for bit, in dtype and shape, too."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
    )


def file_of(folder, name):
    """Name of the file that holds a tensor."""
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return path.name
    return None
