"""The results as a page: tables of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Json = dict
WAYS = ["bf16", "fp8 product", "fp8 static", "fp8 static padded", "fp8 dynamic"]
WAYS += ["fp8 product by row", "fp8 dynamic by row"]


def page(results: Json) -> str:
    """Write the page of a run, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"# On {results['device']}", "", f"`{results['command']}`, {results['date']}; {versions}.", ""]
    lines += _table(
        ("part", "status", "seconds", "reason"),
        ([n, p["status"], p.get("seconds", ""), p.get("reason", "")] for n, p in results["parts"].items()),
    )
    writers = {"a": _products, "b": _groups, "c": _plans, "d": _passes, "e": _values}
    for name, write in writers.items():
        part = results["parts"].get(name, {})
        lines += ["", *write(part, results.get("peaks"))] if len(part) > 2 else []
    return "\n".join(lines) + "\n"


def _products(part: Json, peaks: Json | None) -> Iterator[str]:
    yield "## a. One product at a time"
    yield ""
    cases = part.get("cases", [])
    ways = sorted({way for case in cases for way in case["ways"]}, key=WAYS.index)
    casts = ", ".join(f"{name} {how}" for name, how in part.get("casts", {}).items())
    yield f"Microseconds per product; in brackets how many times as fast as BF16. Casts: {casts}."
    yield ""
    head = ("shape", "rows", "TFLOP/s BF16", "TFLOP/s FP8", *ways)
    yield from _table(head, (_case(case, ways, peaks) for case in cases))
    if part.get("left_out"):
        yield f"\nNot measured, for lack of time: {'; '.join(part['left_out'])}."


def _case(case: Json, ways: list[str], peaks: Json | None) -> list[object]:
    found = case["ways"]
    shape = f"{case['name']} ({case['inner']} x {case['columns']})"
    speeds = [
        _speed(found.get(way, {}), peaks and peaks[format_name])
        for way, format_name in {"bf16": "bf16", "fp8 product": "fp8"}.items()
    ]
    return [shape, case["rows"], *speeds, *(_time(found.get(way), found.get("bf16")) for way in ways)]


def _speed(entry: Json, peak: float | None) -> str:
    if "tflops" not in entry:
        return "-"
    return f"{entry['tflops']:.3g}" + (f" ({entry['tflops'] / peak:.0%})" if peak else "")


def _time(entry: Json | None, base: Json | None) -> str:
    if entry is None:
        return ""
    if "reason" in entry:
        return "cannot run"
    faster = f" ({base['s'] / entry['s']:.2f})" if base and "s" in base else ""
    return f"{1e6 * entry['s']:.4g}{faster}"


def _groups(part: Json, peaks: Json | None) -> Iterator[str]:
    del peaks
    yield "## b. Groups, measured in turn with the base"
    for name, way in part.items():
        if not isinstance(way, dict):
            continue
        yield f"\n### {name}: {1e3 * way['base_s']:.4g} ms in BF16\n"
        head = ("group", "alike", "in FP8", "gain, us", "of the base", "pairs")
        yield from _table(head, (_gain(row, way["base_s"]) for row in way["rows"]))
        yield "\nAll groups of a structure at once, against their number times the gain of one:\n"
        head = ("group", "groups", "sum, us", "measured, us", "measured / sum")
        yield from _table(head, (_sum(row, row["groups"]) for row in way["structures"]))


def _gain(row: Json, base_s: float) -> list[object]:
    names = " ".join(op.rpartition(".")[2] for op in row["lowered"])
    first = [_place(row["group"]), row["groups_alike"], names]
    if row["failure"]:
        return [*first, row["failure"], "", ""]
    pairs = " + ".join(map(str, row["pairs"]))
    return [*first, _micro(row["gain_s"], row["stderr_s"]), f"{row['gain_s'] / base_s:.2%}", pairs]


def _sum(row: Json, *middle: object) -> list[object]:
    ratio = "-" if row["failure"] or not row["sum_s"] else f"{row['measured_s'] / row['sum_s']:.3f}"
    sums = "-" if row["sum_s"] is None else _micro(row["sum_s"], row["sum_stderr_s"])
    measured = row["failure"] or _micro(row["measured_s"], row["stderr_s"])
    return [_place(row["group"]) if "group" in row else row["strategy"], *middle, sums, measured, ratio]


def _place(group: list[str]) -> str:
    """The part of a model that a group lies in: `layers.0.self_attn.q_proj`."""
    return group[0].removeprefix("model.")


def _micro(seconds: float, stderr_s: float) -> str:
    return f"{1e6 * seconds:.4g} ± {1e6 * stderr_s:.2g}"


def _plans(part: Json, peaks: Json | None) -> Iterator[str]:
    del peaks
    yield "## c. Plans of a prompt, end to end"
    yield f"\n{1e3 * part['base_s']:.4g} ms in BF16. Sums are undecided where their error is above 3 %.\n"
    head = ("strategy", "tau", "ops", "sum of groups, us", "measured, us", "measured / sum", "decided")
    rows = (
        [*_sum(row, f"{row['tau']:.3g}", row["ops"]), "yes" if row["decided"] else "no", *_losses(row)]
        for row in part["plans"]
    )
    yield from _table((*head, "loss MSE, predicted", "measured"), rows)


def _losses(row: Json) -> list[str]:
    return [f"{row[key]:.3e}" for key in ("loss_mse_predicted", "loss_mse_measured")]


def _passes(part: Json, peaks: Json | None) -> Iterator[str]:
    del peaks
    yield "## d. The sensitivity pass"
    yield ""
    keys = ["ops", "samples", "tokens", "capture_s"]
    keys += [f"{name}_{key}" for key in ("s", "peak_gib") for name in ("plain", "high", "low")]
    keys += ["high_ratio", "low_ratio", "difference", "reason"]
    shapes = {name: entry for name, entry in part.items() if isinstance(entry, dict)}
    rows = ([name, *(_short(entry.get(key, "")) for key in keys)] for name, entry in shapes.items())
    yield from _table(("shape", *keys), rows)


def _values(part: Json, peaks: Json | None) -> Iterator[str]:
    del peaks
    yield "## e. Values against the CPU's and against float64"
    yield ""
    rows = (
        [name, _short(check["found"]), _short(check["most"]), "yes" if check["holds"] else "NO"]
        for name, check in part.get("checks", {}).items()
    )
    yield from _table(("value", "difference", "at most", "holds"), rows)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Iterable[list[object]]) -> list[str]:
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])]
