"""Requests to a language model, by which its time is priced."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A number of prompts at once, and of tokens of each answer after its first one.

    Its price is TTFT + output_tokens x TPOT: the prompt's pass gives the first token.

    Attributes:
        prompt_tokens: length of each prompt.
        output_tokens: tokens of each answer after its first one.
        batch_size: number of prompts.
    """

    prompt_tokens: int
    output_tokens: int = 0
    batch_size: int = 1
