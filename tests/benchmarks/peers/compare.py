"""Our scores beside those of peers that choose precisions, too: NVIDIA ModelOpt and Intel AutoRound.

    python tests/benchmarks/peers/compare.py MODEL CALIBRATION.jsonl HELDOUT.jsonl [--quick] [--out FILE]

It needs an environment of its own (the peers' pins are not ours):

    python3.11 -m venv peers && . peers/bin/activate
    pip install torch==2.13.0
    pip install -r tests/benchmarks/peers/requirements.txt -e ".[hf,inc]"

Linear ops but the head, which the peers leave alone, too, run in FP8 or stay as they are. All scores are of
the same calibration texts, cut to the same number of tokens:

    kl              labels drawn from the model, with the measured rounding error: nats per token
    loss            the paper's loss MSE, with the measured rounding error
    kl modelled, loss modelled    the same with the paper's uniform noise
    eagl, alps      arXiv 2301.13330: entropy of the weights; loss with one op alone in FP8
    modelopt        AutoQuantize, by gradients (peer_modelopt.py)
    autoround       AutoScheme (peer_autoround.py)
    alone           no method: the measured KL of each op alone in FP8, on the held-out texts themselves

Groups are single ops ("op"), or q, k, v and gate, up together as runtimes fuse them ("fused"). For several
shares of the memory that FP8 would gain, each score picks a plan by the same exact program, and the peers by
a search of their own. Every plan is then measured in the same way: the KL divergence from the model as it
is, per token of held-out texts, with INC's rounding. What a peer's quantizers would do is not measured.

Peers run in processes of their own: what they patch stays there. One that fails is said, and left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from outcomes import meaning, outcomes
from own import own_scores
from plans import all_plans, foretold, own_plans, random_plans, rank_correlations
from subject import Subject, batches_of
from tables import show
from task import GROUPINGS, Task, groups_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import inc_mp_plugin as mp

FOLDER = Path(__file__).parent
PEERS = ("modelopt", "autoround")
PACKAGES = ("torch", "transformers", "nvidia-modelopt", "auto-round", "neural-compressor")
RANDOM_PLANS = 24


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("calibration", type=Path, help="JSON lines with a text each")
    parser.add_argument("heldout", type=Path, help="JSON lines with other texts")
    parser.add_argument("--samples", type=int, default=48, help="of the calibration")
    parser.add_argument("--heldout-samples", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=256, help="of each sample; shorter texts are left out")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="leave out alps and alone: a run for each op")
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    return parser.parse_args()


def long_texts(path: Path, tokenizer: Any, count: int, tokens: int) -> tuple[list[str], torch.Tensor]:
    """Read the first texts that have enough tokens, and cut their tokens."""
    texts, rows = [], []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"].rstrip()  # AutoRound strips it, too
            ids = tokenizer(text)["input_ids"][:tokens]
            if len(ids) == tokens:
                texts.append(text)
                rows.append(ids)
            if len(rows) == count:
                return texts, torch.tensor(rows)
    sys.exit(f"{path} has {len(rows)} texts of {tokens} tokens, and {count} were asked for")


def run_peer(name: str, task: Path) -> dict[str, Any] | None:
    """Let a peer score and choose in a process of its own."""
    result = task.with_name(f"{name}.json")
    command = [sys.executable, str(FOLDER / f"peer_{name}.py"), str(task), str(result)]
    ended = subprocess.run(command, cwd=task.parent, capture_output=True, text=True, check=False)
    if ended.returncode:
        print(f"{name} failed: {ended.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(result.read_text())


def compare(task: Task, subject: Subject, peers: dict[str, dict[str, Any]], *, quick: bool) -> dict[str, Any]:
    """Score, plan, and measure everything."""
    ours = own_scores(task, subject, quick=quick)
    scores = {**ours.scores, **{name: peer["scores"] for name, peer in peers.items()}}
    ops = list(task.elements)
    draws = random_plans(ops, RANDOM_PLANS)
    measured = [float(subject.kl(ops).mean()) for ops in draws]
    alone = {} if quick else {"alone": {op: float(subject.kl([op]).mean()) for op in ops}}
    results = {
        "seconds": {**ours.seconds, **{name: peer["seconds"] for name, peer in peers.items()}},
        "scores": {**scores, **alone},
        "random_plans": {"measured_kl": measured, "sizes": [len(ops) for ops in draws]},
        "foretold": {name: foretold(values, draws, measured) for name, values in scores.items()},
    }
    for grouping in GROUPINGS:
        groups = groups_of(ops, grouping)
        chosen = all_plans(task, groups, results["scores"]) | own_plans(grouping, peers)
        results[grouping] = {
            "groups": len(groups),
            "rank_correlation": rank_correlations(results["scores"], groups),
            "plans": outcomes(task, subject, chosen),
            "meaning": [meaning(subject, ours.kl, plan) for plan in chosen["kl"].values()],
        }
    return results


def machine() -> dict[str, Any]:
    """Name what the numbers depend on."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    """Compare, print, and write."""
    asked = arguments()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32).eval()
    texts, rows = long_texts(asked.calibration, tokenizer, asked.samples, asked.tokens)
    _, heldout = long_texts(asked.heldout, tokenizer, asked.heldout_samples, asked.tokens)
    graph = mp.capture(model, {"input_ids": rows[:1]})
    head = model.get_output_embeddings()
    linear = [op for op in graph.ops if op.kind == "linear"]
    elements = {op.name: op.weight_elements for op in linear if model.get_submodule(op.name) is not head}
    others = sum(op.weight_elements for op in linear) - sum(elements.values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        task = Task(str(Path(asked.model).resolve()), str(file), rows.tolist(), asked.batch, elements, others)
        task.save(Path(folder) / "task.json")
        results = {name: run_peer(name, Path(folder) / "task.json") for name in PEERS}
    peers = {name: result for name, result in results.items() if result is not None}
    subject = Subject(model, graph, batches_of(rows, asked.batch), batches_of(heldout, asked.batch))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items() if k != "out"}
    everything = {
        "command": " ".join(["python", *sys.argv]),
        "settings": settings,
        "machine": machine(),
        **compare(task, subject, peers, quick=asked.quick),
    }
    show(everything)
    if asked.out:
        asked.out.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
