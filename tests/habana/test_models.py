"""optimum-habana's models compute what transformers' own compute, forwards and backwards."""

import models
import pytest
import torch

ATTENTIONS = ("eager", "flash")


def real(values):
    """Without the padding, where attention is arbitrary."""
    return values[models.prompts()["attention_mask"].bool()]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", models.NAMES)
def test_logits_are_those_of_the_stock_model(name, attention):
    model = models.gaudi(name, torch.float32)
    with torch.no_grad():
        logits = model(**models.prompts(), use_cache=False, use_flash_attention=attention == "flash").logits
    assert type(model).__name__.startswith("Gaudi")
    torch.testing.assert_close(real(logits), real(models.stock_logits(name)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", models.NAMES)
def test_stock_model_still_computes_the_same_afterwards(name):
    model = models.stock(name)
    assert not any(type(module).__name__.startswith("Gaudi") for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(**models.prompts()).logits, models.stock_logits(name))


def gradients(model, **options):
    # In evaluation mode optimum-habana adds residuals in place, which backward does not allow.
    model.train()(**models.prompts(), **options).logits.square()[:, -1].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", models.NAMES)
def test_gradients_are_those_of_the_stock_model(name, attention):
    flash = {"use_cache": False, "use_flash_attention": attention == "flash"}
    expected = gradients(models.stock(name))
    actual = gradients(models.gaudi(name, torch.float32), **flash)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        if gradient is None:  # no token came to this expert: optimum-habana runs it and weighs it with 0
            gradient = torch.zeros_like(actual[key])
        largest = float(gradient.abs().max())
        torch.testing.assert_close(actual[key], gradient, rtol=1e-3, atol=1e-3 * largest + 1e-5)
