"""Compare two folders that `inc-mp tune` wrote: `python tests/compare_runs.py BEFORE AFTER`.

Lists the values that differ, to the last digit; who made a file does not count. Exit code 1 if any differs.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NOT_COMPARED = {"made_by", "seconds", "sha256", "arrays_sha256"}  # what they are hashes of is compared


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Yield a line for every value that is not the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted((before.keys() | after.keys()) - NOT_COMPARED):
            yield from differences(before.get(key), after.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{where}[{index}]")
    elif before != after:
        yield f"{where}: {before!r} before, {after!r} after"


def content(path: Path) -> Any:
    """Read a file as values: JSON, arrays, or text."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    return path.read_text().splitlines()


def main(before: Path, after: Path) -> int:
    """Print what differs between two folders."""
    files = {path.relative_to(folder) for folder in (before, after) for path in folder.rglob("*.*")}
    lines = []
    for file in sorted(file for file in files if file.suffix in {".json", ".npz", ".sh"}):
        missing = [folder for folder in (before, after) if not (folder / file).is_file()]
        found = differences(content(before / file), content(after / file)) if not missing else ()
        lines += [f"{file} is not in {folder}" for folder in missing]
        lines += [f"{file}{line}" for line in found]
    print("\n".join(lines) or f"{len(files)} files, no difference")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
