"""Results of the nightly lanes.

`nightly.py record LANE STATUS COMMIT FOLDER` writes them from pytest's files in a folder; `nightly.py stale`
fails if one is missing or old. A result is old once a file that its lane watches is another than at the
commit that was tested; files are compared by content, so a commit that was rebased since still counts.
"""

import datetime
import hashlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import tomllib

Json = dict[str, Any]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "nightly.json"


def lanes() -> Json:
    """Return the lanes of nightly.toml."""
    return tomllib.loads((ROOT / ".ci" / "nightly.toml").read_text())


def watched(lane: Json, commit: str) -> str:
    """Return a hash of all that a lane watches, as of a commit."""
    listed = ["git", "-C", str(ROOT), "ls-tree", "-r", commit, "--", *lane["watches"]]
    tree = subprocess.run(listed, check=True, capture_output=True).stdout
    return hashlib.sha256(tree).hexdigest()


def record(name: str, status: int, commit: str, folder: str) -> str:
    """Write the result of a lane from pytest's files in a folder; return what is wrong with it."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for file in Path(folder).glob("*.xml"):
        for suite in ET.parse(file).iter("testsuite"):
            counts = {key: count + int(suite.get(key, 0)) for key, count in counts.items()}
    failed = counts["failures"] + counts["errors"]
    if status and not failed:
        return f"{name} ended with exit code {status}, and no test failed: nothing is written"
    result = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
        "watched": watched(lanes()[name], commit),
    }
    print(f"{name}: {result['passed']} passed, {failed} failed, {result['skipped']} skipped")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**results, name: result}, indent=1, sort_keys=True) + "\n")
    return fault(name, result)


def fault(name: str, result: Json | None) -> str:
    """Say what is wrong with the result of a lane, or nothing."""
    lane = lanes()[name]
    if result is None:
        return f"{name} was never run"
    if result["failed"] or not result["passed"]:
        return f"{name}: {result['failed']} failed, {result['passed']} passed at {result['commit'][:9]}"
    most = lane.get("most_skipped", result["skipped"])
    if result["skipped"] > most:
        return f"{name}: {result['skipped']} skipped, at most {most} are allowed"
    if result["watched"] != watched(lane, "HEAD"):
        return (
            f"{name}: what it watches ({', '.join(lane['watches'])}) has changed since {result['commit'][:9]}"
        )
    return ""


def stale() -> str:
    """Say what is wrong with the results of all lanes, or nothing."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    faults = [said for name in lanes() if (said := fault(name, results.get(name)))]
    return "\n".join(
        f"{said}; run .ci/nightly {said.split(':')[0].split()[0]}, commit {RESULTS.name}" for said in faults
    )


if __name__ == "__main__":
    if sys.argv[1] == "record":
        sys.exit(record(sys.argv[2], int(sys.argv[3]), *sys.argv[4:6]) or 0)
    sys.exit(stale() or 0)  # an empty text would be an exit code of 1
