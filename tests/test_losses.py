"""The language-model loss: which tokens count, wherever the padding is."""

import helpers
import pytest
import torch

from inc_mp_plugin.losses import language_model_loss


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
    wanted = []
    for row in range(3):
        sample = ids[row][mask[row].bool()][None]
        log = model(sample).logits[0, :-1].log_softmax(dim=-1)
        wanted.append(-log.gather(1, sample[0, 1:, None]).mean())
    torch.testing.assert_close(language_model_loss(model, padded), torch.stack(wanted))
