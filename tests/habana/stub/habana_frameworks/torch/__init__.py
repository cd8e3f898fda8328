"""Makes torch.hpu and torch.ops.hpu exist."""

import sys

import torch

from habana_frameworks.torch import hpu

torch.hpu = hpu
sys.modules["torch.hpu"] = hpu

# These register operators when they are imported.
from habana_frameworks.torch import fp8_operators, operators  # noqa: E402, F401
