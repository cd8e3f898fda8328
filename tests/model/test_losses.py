"""The language-model loss: which tokens count, wherever the padding is."""

import helpers
import naive
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.model.losses import IGNORED_LABEL, language_model_loss, sample_losses
from inc_mp_plugin.model.token_losses import token_losses


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_loss(side):
    """Against each sample alone and unpadded; a first token behind padding is predicted from nothing."""
    model, ids = helpers.language_model("llama"), helpers.tokens(3, 10)
    lengths = (10, 7, 4)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, slice(10 - length, None) if side == "left" else slice(length)] = 1
    padded = {"input_ids": ids, "attention_mask": mask}
    expected = []
    for row in range(3):
        sample = ids[row][mask[row].bool()][None]
        log = model(sample).logits[0, :-1].log_softmax(dim=-1)
        expected.append(-log.gather(1, sample[0, 1:, None]).mean())
    torch.testing.assert_close(language_model_loss(model, padded), torch.stack(expected))


LABELS_OF_NOTHING = [(0, 3), (1, 0), (1, 7)]


def by_pytorch(logits, labels):
    """PyTorch's own, in float64."""
    flat = logits.double().flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(flat, labels.flatten(), reduction="none")
    return losses.view(labels.shape)


def logits_and_labels(vocabulary, tokens, spread, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.randn(2, tokens, vocabulary, generator=generator)).to(dtype)
    labels = torch.randint(0, vocabulary, (2, tokens), generator=generator)
    labels[1] = logits[1].argmax(dim=-1)  # what a good model predicts
    return logits, labels


@pytest.mark.parametrize("spread", [0.02, 1.0, 3.0, 6.0])
@pytest.mark.parametrize(("vocabulary", "tokens"), [(49_152, 24), (262_144, 6)])
def test_losses_of_large_vocabularies_are_right(vocabulary, tokens, spread):
    logits, labels = logits_and_labels(vocabulary, tokens, spread)
    losses = token_losses(logits, labels, IGNORED_LABEL).double().mean(dim=1)
    torch.testing.assert_close(losses, by_pytorch(logits, labels).mean(dim=1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("vocabulary", "tokens"), [(5, 9), (49_152, 24)])
def test_gradients_are_those_of_float64(vocabulary, tokens, dtype):
    logits, labels = logits_and_labels(vocabulary, tokens, 1.0, dtype)
    for place in LABELS_OF_NOTHING:
        labels[place] = IGNORED_LABEL
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    weights[LABELS_OF_NOTHING[0]] = torch.inf  # what is ignored stays out, whatever comes back
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    losses = token_losses(ours, labels, IGNORED_LABEL)
    assert losses.dtype == torch.float32
    assert all(losses[place] == 0 for place in LABELS_OF_NOTHING)
    losses.backward(weights)
    by_pytorch(theirs, labels).backward(weights.masked_fill(labels == IGNORED_LABEL, 0.0).double())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=4 * rounding, atol=1e-9 + rounding**2)
    assert ours.grad.dtype == dtype


def test_logits_are_not_copied():
    """One gradient beside the logits, at the most, and no more memory for more tokens in the forward pass."""
    logits, labels = logits_and_labels(32_768, 256, 1.0)
    whole, made = logits.nbytes, {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            storages = [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            made.update({storage.data_ptr(): storage.nbytes() for storage in storages})
            return result

    logits.requires_grad_()
    with Watch():
        losses = token_losses(logits, labels, IGNORED_LABEL)
    made.pop(logits.untyped_storage().data_ptr())  # views of it
    assert max(made.values()) < whole / 10
    made.clear()
    with Watch():
        losses.sum().backward()
    made.pop(logits.untyped_storage().data_ptr())
    assert [size for size in made.values() if size >= whole / 10] == [whole]


def test_a_sample_without_a_label_is_named():
    """By its number among all samples, not by that in its batch."""
    model = helpers.language_model("llama")
    ids = helpers.tokens(6, 8)
    labels = ids.clone()
    labels[4, 1:] = -100
    batches = [{"input_ids": ids[i : i + 3], "labels": labels[i : i + 3]} for i in (0, 3)]
    graph = mp.capture(model, batches[0])
    for options in ({}, {"scales": mp.Scales("maxabs_pow2", "cpu"), "formats": ("fp8_e4m3",)}):
        with pytest.raises(InputError, match="sample 5 has no token to predict"):
            mp.measure_sensitivity(model, graph, batches, **options)


@pytest.mark.parametrize("part", [0, 1], ids=["input", "label"])
def test_a_sample_with_nan_is_named(part):
    def loss(model, batch):
        inputs, labels = batch
        return (model(inputs) - labels).square().mean(dim=1)

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    torch.manual_seed(0)
    batches = [[torch.randn(2, 4), torch.randn(2, 3)] for _ in range(3)]
    graph = mp.capture(model, batches[0][0])
    mp.measure_sensitivity(model, graph, batches, loss)
    batches[2][part][1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="; sample 6 of the data holds NaN"):
        mp.measure_sensitivity(model, graph, batches, loss)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (
            {"input_ids": helpers.tokens(2) + 90},
            "input_ids hold token 1[0-9]+, but the model knows 96; use its",
        ),
        (
            {"input_ids": helpers.tokens(2), "labels": helpers.tokens(2)[:, :5]},
            r"labels are of shape \(2, 5\), inp",
        ),
        ({"input_ids": helpers.tokens(2), "labels": helpers.tokens(2) + 90}, "is no class of the model"),
    ],
    ids=["tokens", "shape", "labels"],
)
def test_what_does_not_fit_the_model_is_named(batch, text):
    with pytest.raises(InputError, match=text):
        language_model_loss(helpers.language_model("llama"), batch)


def test_a_model_without_logits_needs_a_loss():
    model = helpers.language_model("llama").model
    with pytest.raises(InputError, match="a LlamaModel gives no logits, so it has no loss of its own; give"):
        language_model_loss(model, {"input_ids": helpers.tokens(2)})


@pytest.mark.parametrize("returned", [None, 3.0, [1.0, 2.0]])
def test_a_loss_that_is_no_tensor_is_refused(returned):
    with pytest.raises(
        InputError, match="loss_fn returned .*; it must return a tensor with one loss per sample"
    ):
        sample_losses(helpers.language_model("llama"), helpers.tokens(2), lambda model, batch: returned)


def test_inputs_and_targets_as_a_loader_gives_them(tmp_path):
    """Pairs, of which the model takes the first: from sensitivities to INC's modules."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    pairs = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 1])) for _ in range(2)]

    def loss(model, batch):
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets, reduction="none")

    sensitivity = mp.measure_sensitivity(model, mp.capture(model, pairs[0]), [pairs[0]], loss)
    named = dict(zip(("input", "target"), pairs[0], strict=True))
    naive.assert_sensitivities_agree(sensitivity, model, named, lambda m, b: loss(m, b.values()))
    plan = mp.tune(model, pairs, gain_fraction=0.5, loss_fn=loss, out=tmp_path)
    converted = mp.apply(model, plan, pairs)
    assert {n for n, m in converted.named_modules() if type(m).__name__.startswith("Patched")} == set(
        plan.quantized
    )
