"""All parts of the experiment, one process each: one that fails, hangs or runs out of memory costs no other.

    tests/device/run.sh --out DIR [--only a] [--cpu] [--limit-s 480]

Writes DIR/results.json after every part, and DIR/results.md, a page with its tables.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from device.machine import describe
from device.page import page

# In the order of their worth: module, and seconds at most.
PARTS = {
    "a": ("device.products", 150),
    "b": ("device.groups", 100),
    "c": ("device.plans", 100),
    "d": ("device.passes", 90),
    "e": ("device.values", 40),
}
GRACE_S = 10  # for a part to end by itself


def run_part(name: str, options: argparse.Namespace, limit_s: float) -> dict[str, object]:
    """Run a part in a process of its own; return its status, its seconds and what it wrote."""
    module, own_s = PARTS[name]
    limit_s = min(own_s, limit_s)
    content = options.out / f"{name}.json"
    content.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, "--out", str(content), "--limit-s", str(limit_s - GRACE_S)]
    if options.cpu:
        command.append("--cpu")
    started = time.monotonic()
    log = options.out / f"{name}.log"
    result: dict[str, object] = {"status": "done"}
    with log.open("w", encoding="utf-8") as file:
        try:
            ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s)
            if ended.returncode:
                words = last_words(log.read_text(encoding="utf-8", errors="replace"))
                result = {"status": "failed", "reason": f"exit code {ended.returncode}: {words}"}
        except subprocess.TimeoutExpired:
            result = {"status": "failed", "reason": f"not done after {limit_s:.0f} s"}
    result["seconds"] = round(time.monotonic() - started, 1)
    if content.exists():  # also of a part that failed: it writes as it goes
        result |= json.loads(content.read_text(encoding="utf-8"))
    return result


def last_words(log: str) -> str:
    """The line of a log that names an error, else its last line: errors of torch go on for pages."""
    lines = log.strip().splitlines() or ["no words"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (errors or lines)[-1][:300]


def save(folder: Path, results: dict[str, object]) -> None:
    """Write the results and their page, each aside first."""
    for name, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("results.md", page(results))):
        aside = folder / f"{name}.new"
        aside.write_text(text, encoding="utf-8")
        aside.replace(folder / name)


def main() -> int:
    """Run the parts that are asked for; 1 if one of them is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/device"))
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--limit-s", type=float, default=480.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.limit_s
    kept, before = options.out / "results.json", {}
    if options.only and kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))["parts"]
    parts = {name: before.get(name, {"status": "skipped", "reason": "not asked for"}) for name in PARTS}
    results = {"command": " ".join(["tests/device/run.sh", *sys.argv[1:]]), **describe(options.cpu)}
    results["parts"] = parts
    for name in options.only or PARTS:
        left_s = ends - time.monotonic()
        print(f"part {name}: {PARTS[name][0]}, {left_s:.0f} s left for all", flush=True)
        if left_s < 2 * GRACE_S:
            parts[name] = {"status": "skipped", "reason": f"only {left_s:.0f} s were left"}
        else:
            parts[name] = run_part(name, options, left_s)
        print(f"  {parts[name]['status']} {parts[name].get('reason', '')}", flush=True)
        save(options.out, results)
    return int(any(parts[name]["status"] != "done" for name in options.only or PARTS))


if __name__ == "__main__":
    sys.exit(main())
