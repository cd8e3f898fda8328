"""Part e: values on the device against those on the CPU, and against products in float64."""

from __future__ import annotations

import sys

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from device.casts import cast_rows, cast_static, cast_tensor, product
from device.machine import Part
from inc_mp_plugin.model.float8 import Float8Linear
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.model.token_losses import token_losses

FORMAT = "fp8_e4m3"
BF16_STEP = 2.0**-8  # half a unit in the last place, relative


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).abs().max() / expected.abs().max())


def unequal(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of FP8 codes that differ."""
    return float((found.cpu().view(torch.uint8) != expected.cpu().view(torch.uint8)).double().mean())


def casts(device: torch.device) -> dict[str, tuple[float, float]]:
    """Codes of the same numbers: (share that differs, at most)."""
    x = torch.randn(64, 256, dtype=torch.bfloat16)
    inverse = 448 / x.abs().amax().float()
    checks = {
        "codes, static": (
            unequal(cast_static(x.to(device), inverse.to(device)), cast_static(x, inverse)),
            0.0,
        )
    }
    for name, cast in {"dynamic": cast_tensor, "dynamic by row": cast_rows}.items():
        # A division may round otherwise, and move a number that is next to the middle of two codes.
        checks[f"codes, {name}"] = (unequal(cast(x.to(device))[0], cast(x)[0]), 1e-3)
    return checks


def products(device: torch.device) -> dict[str, tuple[float, float]]:
    """FP8 products against the same codes multiplied in float64."""
    x, w = torch.randn(48, 256), torch.randn(96, 256)
    checks = {}
    for name, cast in {"one scale": cast_tensor, "scales by row": cast_rows}.items():
        (a, scale_a), (b, scale_b) = cast(x.to(device)), cast(w.to(device))
        expected = (a.double() * scale_a.double()) @ (b.double() * scale_b.double()).t()
        scale_b = scale_b if scale_b.dim() == 0 else scale_b.reshape(1, -1).contiguous()
        try:
            found = product(a, b.t(), scale_a, scale_b)
        except RuntimeError:
            if device.type != "cpu":  # torch 2.11 has no scales by row there
                raise
            continue
        # Fast accumulation keeps about 14 bits of a sum, BF16 8 of the result.
        checks[f"product, {name}"] = (error(found, expected), 2 * BF16_STEP)
    return checks


def layers(device: torch.device) -> dict[str, tuple[float, float]]:
    """The FP8 module that times are measured with, on the device and on the CPU."""
    linear = nn.Linear(256, 96).bfloat16()
    x = torch.randn(48, 256).bfloat16()
    largest = float(x.abs().max())
    here = Float8Linear(linear, largest)
    expected = here(x)
    there = Float8Linear(linear.to(device), largest)
    return {
        "module, weight codes": (unequal(there.weight, here.weight), 0.0),
        "module, output": (error(there(x.to(device)), expected), 2 * BF16_STEP),
    }


def sensitivities(device: torch.device) -> dict[str, tuple[float, float]]:
    """Losses and sensitivities of a small Llama in FP32, and its rounding errors under INC's scales."""
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(0, 96, (4, 24))
    seen = []
    for place in ("cpu", device):
        model, batch = model.to(place), {"input_ids": ids.to(place)}
        graph = mp.capture(model, batch)
        scales = {"scales": mp.Scales("maxabs_pow2", "cpu"), "formats": (FORMAT,)}
        measured = mp.measure_sensitivity(model, graph, [batch], **scales)
        losses = language_model_loss(model, batch)
        seen.append(
            [torch.from_numpy(a) for a in (measured.input, measured.weight, measured.rounding[FORMAT])]
        )
        seen[-1].append(losses)
    names = ("inputs", "weights", "rounding errors")
    limits = (1e-3, 1e-3, 2e-2)  # a number next to the middle of two codes may be rounded the other way
    checks = {
        f"sensitivity, {name}": (error(seen[1][index], seen[0][index]), limit)
        for index, (name, limit) in enumerate(zip(names, limits, strict=True))
    }
    return checks | {"losses": (error(seen[1][3], seen[0][3]), 1e-5)}


def cross_entropy(device: torch.device) -> dict[str, tuple[float, float]]:
    """Cross entropy of a large vocabulary against float64."""
    logits, labels = torch.randn(2, 3, 49152) * 4, torch.randint(0, 49152, (2, 3))
    flat = logits.double().flatten(0, 1)
    expected = nn.functional.cross_entropy(flat, labels.flatten(), reduction="none").view(2, 3)
    return {
        "cross entropy": (error(token_losses(logits.to(device), labels.to(device), -100), expected), 1e-6)
    }


def main() -> int:
    """Make all checks; 1 if one does not hold."""
    part = Part()
    torch.backends.cuda.matmul.allow_tf32 = False
    part.content["checks"] = checks = {}
    for check in (casts, products, layers, cross_entropy, sensitivities):
        torch.manual_seed(0)
        for name, (found, most) in check(part.device).items():
            checks[name] = {"found": found, "most": most, "holds": bool(found <= most)}
            part.save()
    broken = [name for name, one in checks.items() if not one["holds"]]
    if broken:
        print(f"does not hold: {', '.join(broken)}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
