"""Requests against transformers' own generation."""

import helpers
import pytest
import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.gain.passes import batch_passes, prompt, request_passes

NAMES = ["llama", "gemma3", "gpt_neox", "opt"]


def request_of(name, request, *, static_cache=False):
    model = helpers.language_model(name)
    return model, request_passes(model, request, static_cache=static_cache, device="cpu")


@torch.inference_mode()
@pytest.mark.parametrize("static_cache", [False, True], ids=["growing cache", "static cache"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_that_generate_gives(name, static_cache):
    request = Request(prompt_tokens=6, output_tokens=4, batch_size=2)
    model, (ttft, tpot) = request_of(name, request, static_cache=static_cache)
    assert (ttft.name, ttft.times, tpot.name, tpot.times) == ("ttft", 1, "tpot", 4)
    tokens = [ttft.run()]
    for _ in range(4):
        tpot.prepare()
        tokens.append(tpot.run())
    ids = prompt(model, request)["input_ids"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, 6:]
    assert torch.equal(torch.stack(tokens, dim=1), expected)


@torch.inference_mode()
def test_decoding_starts_over_when_all_tokens_are_out():
    _, (_, tpot) = request_of("llama", Request(6, 2))
    tokens = []
    for _ in range(6):
        tpot.prepare()
        tokens.append(int(tpot.run()))
    assert tokens[:2] == tokens[2:4] == tokens[4:]


@torch.inference_mode()
def test_a_prompt_alone_keeps_no_cache():
    _, passes = request_of("llama", Request(6))
    assert [forward.name for forward in passes] == ["ttft"]
    assert passes[0].run().shape == (1,)


@torch.inference_mode()
def test_any_model_can_be_timed_on_a_batch():
    model = helpers.encoder()
    (only,) = batch_passes(model, {"input_ids": helpers.tokens(2)})
    assert only.run().logits.shape[0] == 2


def test_prompts_are_the_same_every_time_and_leave_the_generator_alone():
    model = helpers.language_model("llama")
    state = torch.get_rng_state()
    first, second = (prompt(model, Request(7, batch_size=3)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].shape == (3, 7)
    assert first["logits_to_keep"] == 1


def test_requests_that_cannot_be_served():
    with pytest.raises(InputError, match="prompt_tokens \\+ request.output_tokens is 5000000"):
        request_of("llama", Request(4_000_000, 1_000_000))
    with pytest.raises(InputError, match="needs a language model of transformers, not a Linear"):
        request_passes(torch.nn.Linear(2, 2), Request(4), static_cache=False, device="cpu")
