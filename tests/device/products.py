"""Part a: FP8 against BF16, one matrix product at a time, at the shapes of Llama 3.

Each measurement runs through copies of the weight that no cache holds together, on random data. Of FP8 it
takes the product alone, and with the cast of its input in four ways, fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from device.casts import (
    FAST,
    FP8,
    cast_rows,
    cast_static,
    cast_tensor,
    padded_static,
    product,
    runs_public,
)
from device.clock import times_s
from device.machine import Part
from inc_mp_plugin.model.compiled import fused

# Inner size and columns; what is not listed has the shape of one that is (k as v, gate as up).
LLAMA_1B = {"1B q": (2048, 2048), "1B k": (2048, 512), "1B up": (2048, 8192), "1B down": (8192, 2048)}
LLAMA_8B = {"8B q": (4096, 4096), "8B k": (4096, 1024), "8B up": (4096, 14336), "8B down": (14336, 4096)}
HEADS = {"1B head": (2048, 128256), "8B head": (4096, 128256)}
DECODE, PREFILL = (1, 8, 64), (2048, 16384)
TINY = {"tiny up": (32, 64), "tiny down": (64, 32)}
MOST_COPIES = 64
ROUNDS = 12


def cases(cpu: bool) -> list[tuple[str, int, int, int]]:
    """(name, rows, inner size, columns), the layers before the heads, whose prefill is one row."""
    if cpu:
        return [(name, rows, *sizes) for name, sizes in TINY.items() for rows in (1, 32)]
    layers = [(n, rows, *s) for rows in DECODE + PREFILL for n, s in (LLAMA_1B | LLAMA_8B).items()]
    return layers + [(n, rows, *s) for n, s in HEADS.items() for rows in DECODE]


def weights_of(inner: int, columns: int, device: torch.device) -> list[Tensor]:
    """Random weights, as many as three times the largest cache holds in FP8."""
    cache = 2**20 if device.type == "cpu" else 3 * torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(max(-(-cache // (inner * columns)), 2), MOST_COPIES)
    return [torch.randn(columns, inner, device=device, dtype=torch.bfloat16) * 0.02 for _ in range(copies)]


def runs(x: Tensor, weights: list[Tensor], casts: dict[str, Callable]) -> Iterator[tuple[str, Callable]]:
    """Yield all ways to multiply, each a run through all copies of the weight."""
    rows = x.shape[0]
    scale = x.abs().amax().float() / (0.25 * torch.finfo(FP8).max)  # room for four times as much
    inverse = 1 / scale
    tensor = [cast_tensor(weight) for weight in weights]
    by_row = [cast_rows(weight) for weight in weights]
    tensor = [(codes.t(), scale_w) for codes, scale_w in tensor]
    by_row = [(codes.t(), scale_w.reshape(1, -1).contiguous()) for codes, scale_w in by_row]
    codes, row_codes, row_scale = cast_static(x, inverse), *cast_rows(x)

    def each(weights: list, call: Callable) -> Callable[[], None]:
        def run() -> None:
            for weight in weights:
                call(*weight)

        return run

    def static(cast: Callable, b: Tensor, scale_b: Tensor) -> Tensor:
        return product(cast(x, inverse), b, scale, scale_b)[:rows]

    def dynamic(cast: Callable, b: Tensor, scale_b: Tensor) -> Tensor:
        cast_x, scale_x = cast(x)
        return product(cast_x, b, scale_x, scale_b)

    yield "bf16", each([(weight,) for weight in weights], partial(nn.functional.linear, x))
    yield "fp8 product", each(tensor, lambda b, s: product(codes, b, scale, s))
    yield "fp8 product by row", each(by_row, lambda b, s: product(row_codes, b, row_scale, s))
    yield "fp8 static", each(tensor, partial(static, casts["static"]))
    if rows < 17:
        yield "fp8 static padded", each(tensor, partial(static, casts["padded"]))
    yield "fp8 dynamic", each(tensor, partial(dynamic, casts["tensor"]))
    yield "fp8 dynamic by row", each(by_row, partial(dynamic, casts["rows"]))


def measure(name: str, rows: int, inner: int, columns: int, part: Part, casts: dict, limit_s: float) -> dict:
    """Time all ways of one case; a way that this device or version cannot go has its reason instead."""
    x = torch.randn(rows, inner, device=part.device, dtype=torch.bfloat16)
    weights = weights_of(inner, columns, part.device)
    able, broken = {}, {}
    for way, run in runs(x, weights, casts):
        try:
            run()
            able[way] = run
        except (RuntimeError, ValueError, NotImplementedError) as error:
            broken[way] = {"reason": " ".join(str(error).split())[:200]}
    found = times_s(able, device=part.device, rounds=ROUNDS, limit_s=limit_s)
    flops = 2 * rows * inner * columns
    for entry in found.values():
        entry["s"], entry["se_s"] = entry["s"] / len(weights), entry["se_s"] / len(weights)
        entry["tflops"] = flops / entry["s"] / 1e12
    sizes = {"rows": rows, "inner": inner, "columns": columns, "copies": len(weights)}
    return {"name": name, **sizes, "ways": found | broken}


@torch.inference_mode()
def main() -> None:
    """Measure all cases, as far as the time goes."""
    part = Part()
    torch.manual_seed(0)
    x, one = torch.randn(4, 32, device=part.device, dtype=torch.bfloat16), torch.ones((), device=part.device)
    examples = {"static": (cast_static, x, one), "padded": (padded_static, x, one)}
    examples |= {"tensor": (cast_tensor, x), "rows": (cast_rows, x)}
    made = {name: fused(*example) for name, example in examples.items()}
    casts = {name: cast for name, (cast, _) in made.items()}
    part.content |= {"casts": {name: how for name, (_, how) in made.items()}, "fast_accumulation": FAST}
    part.content["product"] = "scaled_mm" if runs_public(part.device) else "_scaled_mm"
    part.content["cases"] = done = []
    every = cases(part.cpu)
    for number, case in enumerate(every):
        if part.left_s <= 0:
            part.content["left_out"] = [f"{name}, {rows} rows" for name, rows, *_ in every[number:]]
            break
        limit_s = max(part.left_s, 0) / (len(every) - number) / 2  # the other half is for preparing
        done.append(measure(*case, part, casts, limit_s))
        part.save()
    part.save()


if __name__ == "__main__":
    main()
