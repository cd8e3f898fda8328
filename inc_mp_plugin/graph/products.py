"""Matrix products and convolutions in an exported graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch.fx import Node

from inc_mp_plugin.core.graph import Gemm
from inc_mp_plugin.libraries.torch import GROUPED_PRODUCTS, is_overload, schema_name

# ATen products, and the operand whose last axis is summed over.
_PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
# Kernels that multiply all experts of a layer at once.
GROUPED = GROUPED_PRODUCTS
OTHER_PRODUCTS = {"scaled_dot_product_attention", "einsum"} | GROUPED
# Name of the node that stands for a layer of experts.
EXPERTS: Final = "experts"


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product or convolution of the exported graph, and the module that contains it."""

    node: Node
    kind: str
    module: str
    module_class: str

    @property
    def gemm(self) -> Gemm:
        """Shape of the product, of the whole batch; a convolution's is that of unfolded patches."""
        shape = tuple(self.node.meta["val"].shape)
        if self.kind in _CONVOLUTIONS:
            channels, *window = self._shape(1)
            shares = self._shape(0)[1] // window[0]
            pixels = math.prod(shape) // channels
            return Gemm(shares, pixels, math.prod(window), channels // shares)
        operand = _PRODUCTS[self.kind]
        inner, other = self._shape(operand)[-1], self._shape(operand + 1)
        columns = shape[-1] if len(other) > 1 else 1
        # Query heads that share a key head are rows of one product: the key is read once for them all.
        batch = math.prod(other[:-2])
        return Gemm(batch, math.prod(shape) // (batch * columns), inner, columns)

    def _shape(self, argument: int) -> tuple[int, ...]:
        value = self.node.args[argument]
        return tuple(value.meta["val"].shape) if isinstance(value, Node) else ()


def find_products(nodes: list[Node]) -> Iterator[Product]:
    """Yield the products of a graph that a module contains, in execution order."""
    kinds = _PRODUCTS.keys() | _CONVOLUTIONS | OTHER_PRODUCTS | {EXPERTS}
    for node in nodes:
        if node.op != "call_function" or not is_overload(node.target):
            continue
        kind = schema_name(node.target)
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if kind in kinds and stack:
            path, kind_of_module = stack[-1]
            yield Product(node, kind, path.split("@")[0], str(kind_of_module).rsplit(".", 1)[-1])
