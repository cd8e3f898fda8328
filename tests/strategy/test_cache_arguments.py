"""Of a generation the first step is kept, without its cache; by what a call is given, however it is given."""

import helpers
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.transformers import cache_argument, cache_of, new_static_cache
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.strategy.batch_recorder import BatchRecorder
from inc_mp_plugin.strategy.cache_arguments import goes_on, without_cache

PROMPTS = [helpers.tokens(2, 6, seed) for seed in range(2)]
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])  # of the prompts, on the left
WINDOW = {"sliding_window": 4}

# Ways in which a decoder keeps what it has seen: model, changes of its configuration, options of generate.
GENERATIONS = {
    "dynamic": ("llama", {}, {}),
    "static": ("llama", {}, {"cache_implementation": "static"}),
    "static, as long as the prompt": ("llama", {}, {"cache_implementation": "static", "max_new_tokens": 1}),
    "sliding": ("mistral", WINDOW, {}),
    "static sliding": ("mistral", WINDOW, {"cache_implementation": "static"}),
    "static, a long window": ("mistral", {"sliding_window": 7}, {"cache_implementation": "static"}),
    "full and sliding": ("gemma3", WINDOW, {}),
    "full and sliding, static": ("gemma3", WINDOW, {"cache_implementation": "static"}),
    "eager, static": ("llama", {"_attn_implementation": "eager"}, {"cache_implementation": "static"}),
    "beams": ("llama", {}, {"num_beams": 2}),
    "no names of old": ("gpt2", {}, {}),
    "assisted": ("llama", {}, {"prompt_lookup_num_tokens": 2}),
}


def kept_of(model, run):
    recorder = BatchRecorder(100)
    recorder.watch(model)
    with torch.no_grad():
        run(model)
    recorder.stop(model)
    return recorder.batches


@pytest.mark.parametrize("case", GENERATIONS)
def test_the_first_step_of_a_generation_is_kept(case):
    """Replayed, it has the loss and the logits of the prompts."""
    name, changes, options = GENERATIONS[case]
    model = helpers.language_model(name, **changes)
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, **options}
    beams, rows = options.get("num_beams", 1), slice(1, 2) if case == "assisted" else slice(None)

    def run(model):
        for ids in PROMPTS:
            model.generate(ids[rows], attention_mask=PADDED[rows], **settings)

    batches = kept_of(model, run)
    assert len(batches) == len(PROMPTS)
    for batch, ids in zip(batches, PROMPTS, strict=True):
        plain = {"input_ids": ids[rows].repeat_interleave(beams, 0)}
        plain["attention_mask"] = PADDED[rows].repeat_interleave(beams, 0)
        if "position_ids" in batch:
            plain["position_ids"] = (plain["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        assert torch.equal(batch["input_ids"], plain["input_ids"])
        torch.testing.assert_close(language_model_loss(model, batch), language_model_loss(model, plain))
        seen = plain["attention_mask"].bool()
        torch.testing.assert_close(model(**batch).logits[seen], model(**plain).logits[seen])


@pytest.mark.parametrize("name", ["mamba", "t5", "jamba"])
def test_states_of_a_recurrence_and_of_an_encoder(name):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
    configs = {
        "mamba": lambda: transformers.MambaConfig(**sizes, state_size=4),
        "jamba": lambda: transformers.JambaConfig(
            **sizes,
            intermediate_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=2,
            use_mamba_kernels=False,
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0
        ),
    }
    kinds = {
        "mamba": transformers.MambaForCausalLM,
        "jamba": transformers.JambaForCausalLM,
        "t5": transformers.T5ForConditionalGeneration,
    }
    model = kinds[name](configs[name]()).eval()

    def run(model):
        for ids in PROMPTS:
            whole = torch.ones_like(ids)  # else token 0 would be taken for padding
            model.generate(
                ids,
                attention_mask=whole,
                max_new_tokens=4,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )

    batches = kept_of(model, run)
    assert len(batches) == len(PROMPTS)
    for batch, ids in zip(batches, PROMPTS, strict=True):
        if name == "t5":  # the encoder has run by itself
            assert batch["decoder_input_ids"].shape == (2, 1)
            expected = model(input_ids=ids, decoder_input_ids=batch["decoder_input_ids"]).logits
        else:
            assert torch.equal(batch["input_ids"], ids)
            expected = model(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(**batch).logits, expected)


def test_a_generation_in_chunks_of_a_prompt():
    model = helpers.language_model("llama")
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "prefill_chunk_size": 4}
    calls = []
    with torch.no_grad(), model.register_forward_pre_hook(lambda *_, **__: calls.append(1)):
        model.generate(PROMPTS[0], **options)
    if len(calls) < 3:
        pytest.skip("this generate runs chunks past the hooks")
    batches = kept_of(model, lambda m: m.generate(PROMPTS[0], **options))
    assert [batch["input_ids"].tolist() for batch in batches] == [PROMPTS[0][:, :4].tolist()]


@pytest.mark.parametrize("kind", ["dynamic", "static", "by the old name"])
def test_steps_of_the_users_own(kind):
    model = helpers.language_model("llama")
    fresh = {
        "dynamic": lambda: DynamicCache(),
        "static": lambda: new_static_cache(model, samples=2, length=8),
    }.get(kind, lambda: DynamicCache())

    def named(cache):
        return (
            {"past_key_values": cache} if kind == "by the old name" else cache_argument(model.forward, cache)
        )

    def run(model):
        for ids in PROMPTS:
            cache = cache_of(model(input_ids=ids, use_cache=True, **named(fresh())))
            model(input_ids=ids[:, -1:], use_cache=True, **named(cache))
            if kind == "static":
                cache.reset()
                model(input_ids=ids, use_cache=True, **named(cache))

    batches = kept_of(model, run)
    assert [b["input_ids"].shape for b in batches] == [(2, 6)] * (4 if kind == "static" else 2)
    assert all(batch.keys() == {"input_ids"} for batch in batches)


class Keys:
    """A cache of someone's own, without any name that a library has."""

    def __init__(self):
        self.k = None


class Decoder(nn.Module):
    """Attention over what a cache holds, which is passed by position."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(96, 8), nn.Linear(8, 96)

    def forward(self, ids, state=None):
        x = self.embedding(ids)
        keys = x
        if isinstance(state, Keys):
            keys = x if state.k is None else torch.cat([state.k, x], 1)
            state.k = keys
        elif state is not None:
            keys = torch.cat([layer[0] for layer in state] + [x], 1)
        return self.out((x @ keys.transpose(1, 2)).softmax(-1) @ keys), ((keys, keys), (keys, keys))


@pytest.mark.parametrize("form", ["object", "legacy tuples"])
def test_a_cache_that_is_passed_by_position(form):
    def run(model):
        for ids in PROMPTS:
            state = Keys() if form == "object" else None
            _, layers = model(ids, state)
            model(ids[:, -1:], state if form == "object" else layers)
            model(ids[:, -1:], state if form == "object" else list(map(list, layers)))

    batches = kept_of(Decoder(), run)
    assert [batch["ids"].tolist() for batch in batches] == [ids.tolist() for ids in PROMPTS]
    assert all(batch.keys() == {"ids"} for batch in batches)


def test_calibration_that_never_begins():
    model = helpers.language_model("llama")
    cache = cache_of(model(input_ids=PROMPTS[0], use_cache=True))
    with pytest.raises(InputError, match="every call of calibration went on from a key-value cache"):
        kept_of(model, lambda m: m(PROMPTS[0], **cache_argument(m.forward, cache)))


LAYER = torch.ones(2, 2, 5, 4)


class Told:
    def __init__(self, tokens, *tensors):
        self.tokens, self.tensors = tokens, tensors

    def get_seq_length(self):
        return torch.tensor(self.tokens)


class Recurrent:
    """What transformers makes of models without attention: no length to tell."""

    def __init__(self, value):
        self.layers = [Keys()]
        self.layers[0].states = {0: torch.full((2, 4, 3), value)}

    def get_seq_length(self):
        raise ValueError


CACHES = {
    "told": (Told(3), Told(0)),
    "static": (Told(3, LAYER), Told(0, LAYER)),
    "quantized": (Told(3, LAYER.to(torch.uint8)), Told(0)),
    "told wrongly": (Told(2, LAYER), Told(2, torch.ones(2, 0), torch.zeros(2, 4, 3))),
    "recurrent": (Recurrent(1.0), Recurrent(0.0)),
    "layers": (((LAYER, LAYER), (LAYER, LAYER)), ((LAYER[:, :, :0],) * 2,) * 2),
    "decoder": (((LAYER,) * 4,) * 2, ((LAYER[:, :, :0],) * 4,) * 2),
}
WRAPPED = {
    "bare": lambda cache: cache,
    "in a dict": lambda cache: {"deep": cache},
    "in lists": lambda cache: [None, [cache]],
}


@given(
    kind=st.sampled_from([k for k in CACHES if k not in ("layers", "decoder")]),
    name=st.sampled_from(["cache", "past_key_values", "cache_params", "state", "x", "args"]),
    wrapped=st.lists(st.sampled_from(list(WRAPPED)), max_size=3),
)
def test_neither_name_nor_nesting_counts(kind, name, wrapped):
    full, empty = CACHES[kind]
    for wrap in wrapped:
        full, empty = WRAPPED[wrap](full), WRAPPED[wrap](empty)
    ids = PROMPTS[0]
    assert goes_on({"input_ids": ids, name: full})
    assert not goes_on({"input_ids": ids, name: empty})


@pytest.mark.parametrize("kind", ["layers", "decoder"])
@pytest.mark.parametrize("name", ["cache", "past_key_values", "x"])
def test_tensors_layer_by_layer(kind, name):
    full, empty = CACHES[kind]
    assert goes_on({"ids": PROMPTS[0], name: full})
    assert not goes_on({"ids": PROMPTS[0], name: empty})


ONES = torch.ones(2, 6, dtype=torch.long)
PICTURES = torch.ones(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "later"),
    [
        ({"input_ids": ONES, "attention_mask": ONES}, False),
        ({"input_ids": ONES[:, :1], "attention_mask": ONES}, True),  # the cache is inside the model
        ({"inputs_embeds": torch.ones(2, 1, 8), "attention_mask": ONES}, True),
        (
            {"input_ids": ONES[:, :1], "attention_mask": torch.ones(2, 1, 1, 9)},
            False,
        ),  # made for a static cache
        ({"decoder_input_ids": ONES[:, :1], "attention_mask": ONES, "encoder_outputs": [PICTURES]}, False),
        ({"decoder_input_ids": ONES[:, :1], "decoder_attention_mask": ONES}, True),
        ({"input_ids": ONES, "position_ids": torch.arange(6)[None]}, False),
        ({"input_ids": ONES, "position_ids": torch.arange(6)[None] + 2}, False),  # as RoBERTa counts
        ({"input_ids": ONES[:, :1], "position_ids": torch.full((2, 1), 6)}, True),
        ({"input_ids": ONES[:, :1], "position_ids": torch.zeros(2, 1, dtype=torch.long)}, False),
        ({"input_ids": ONES, "cache_position": torch.arange(6)}, False),
        ({"input_ids": ONES, "cache_position": torch.arange(6) + 4}, True),
        ({"left": PICTURES, "right": PICTURES}, False),
        ({"pairs": ((PICTURES, PICTURES), (PICTURES, PICTURES))}, False),  # no tokens: no keys and values
        ({"input_ids": ONES, "pixel_values": [PICTURES, PICTURES], "labels": ONES}, False),
        ({"input_ids": ONES, "past": [PICTURES]}, True),
        ({}, False),
    ],
)
def test_what_the_arguments_say(arguments, later):
    assert goes_on(arguments) == later


@given(
    tokens=st.integers(1, 6),
    room=st.integers(0, 3),
    window=st.integers(1, 7),
    padding=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    left=st.booleans(),
    boolean=st.booleans(),
)
def test_a_mask_made_for_a_static_cache_becomes_the_padding(tokens, room, window, padding, left, boolean):
    """Position by position: a token sees itself and what is before it, no padding, none beyond a window."""
    padding = [min(count, tokens - 1) for count in padding]
    real = [[(i >= p) if left else (i < tokens - p) for i in range(tokens)] for p in padding]
    seen = [
        [[j <= i < j + window and j < tokens and row[j] for j in range(tokens + room)] for i in range(tokens)]
        for row in real
    ]
    mask = torch.tensor(seen)[:, None]
    if not boolean:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for given_mask in (mask, {"full_attention": mask, "none": None}):
        kept = without_cache({"ids": ONES, "attention_mask": given_mask, "cache": Told(0)})
        assert kept.keys() == {"ids", "attention_mask"}
        assert kept["attention_mask"].tolist() == [[int(is_token) for is_token in row] for row in real]


def test_a_mask_of_ones_own_is_only_cut():
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)  # nothing is causal here
    assert without_cache({"attention_mask": mask, "cache": Told(0)})["attention_mask"].shape == (1, 1, 3, 3)
    assert without_cache({"attention_mask": mask})["attention_mask"] is mask
