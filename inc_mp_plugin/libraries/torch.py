"""Private parts of torch, and parts that have changed between its versions; last checked with torch 2.13."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import config as fx_config
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

GROUPED_PRODUCTS = {"_grouped_mm", "grouped_mm_fallback"}  # ATen's, and transformers 5's in its place; 2.13
ORIGINAL = "_orig_mod"  # where a compiled module keeps the one it was made of, as users are told; 2.13
_NO_TRACES = "do_not_emit_stack_traces"  # a setting that 2.5 does not have


def leaves(tree: Any) -> list[Any]:
    """List all that nested tuples, lists and dicts hold, and containers that libraries registered as such.

    It is the walk that torch itself uses, and has no public name. 2.13.
    """
    return pytree.tree_leaves(tree)


def with_leaves(tree: Any, values: list[Any]) -> Any:
    """Put other values in the place of those that `leaves` lists, keeping the structure around them. 2.13."""
    return pytree.tree_unflatten(values, pytree.tree_structure(tree))


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to all that `leaves` lists, keeping the structure around it. 2.13."""
    return pytree.tree_map(function, tree)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples, lists and dicts, keeping their structure.

    As `leaves`, and with them in one order: the order in which inputs of an op are counted. 2.13.
    """
    return pytree.tree_map_only(Tensor, function, tree)


def parameters_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own parameters, in the dict that it reads them from; entries may be put in.

    `register_parameter` takes the old one's place last in the order, and setattr refuses tensors. 2.13.
    """
    parameters: dict[str, Any] = module._parameters
    return parameters


def give_parameters(module: nn.Module, parameters: dict[str, Any]) -> None:
    """Give a module a dict of parameters of its own, in place of one that its copy shares with it. 2.13."""
    module._parameters = parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own buffers, those of None included; `buffers()` leaves out shared ones. 2.13."""
    buffers: dict[str, Tensor | None] = module._buffers
    return buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children, in the dict that it reads them from.

    `named_children` leaves out repeated ones. A child whose name is a number can be put in by no
    attribute. 2.13.
    """
    return module._modules


def remove_pre_hook(module: nn.Module, number: int) -> None:
    """Take a forward hook off a module by the number of its handle.

    A handle removes from the module that it was made on only, and deep copies have copies of hooks. 2.13.
    """
    module._forward_pre_hooks.pop(number, None)
    module._forward_pre_hooks_with_kwargs.pop(number, None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode inside a `with`; every module then gets its own mode back. 2.13."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def version_of(tensor: Tensor) -> int:
    """Count how often a tensor was changed in place; nothing public tells. 2.13."""
    return tensor._version


def viewed(tensor: Tensor) -> Tensor:
    """Return the tensor that a view is of, or itself if it is no view; nothing public tells. 2.13."""
    return tensor if tensor._base is None else tensor._base


def is_spread(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over processes, in whatever way. 2.13."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Tensor) -> Tensor:
    """Return all of a tensor; where it is spread, all processes have to ask for it at once. 2.13."""
    whole: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds. 2.13."""
    part: Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return part


def is_freed(tensor: Tensor) -> bool:
    """Tell whether the memory of a tensor was given back, as FSDP2 does between uses. 2.13."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model that a compiled one was made of; any other model as it is. 2.13."""
    return getattr(model, ORIGINAL) if is_compiled(model) else model


def is_compiled(model: nn.Module) -> bool:
    """Tell whether a model is what `torch.compile` returned; nothing public tells. 2.13."""
    return isinstance(model, OptimizedModule)


def is_overload(function: Any) -> bool:
    """Tell whether a function is an operator of torch's, as in an exported graph: no public class. 2.13.

    Example:
        >>> is_overload(torch.ops.aten.mm.default), is_overload(torch.mm)
        (True, False)
    """
    return isinstance(function, OpOverload)


def operator_name(function: Any) -> str:
    """Return the name of an operator, "hpu.mixture_of_experts.default"; "" for any other function.

    Under a torch-function mode a call from Python carries all overloads at once, which have no suffix. 2.13.
    """
    return str(function) if isinstance(function, OpOverload | OpOverloadPacket) else ""


def schema_name(function: Any) -> str:
    """Return the name of an exported node's operator without its namespace, "linear".

    str() adds the overload. 2.13.
    """
    name: str = function._schema.name
    return name.split("::")[-1]


class ReplacedOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Other functions in the place of ATen's operators inside a `with`, backward passes included.

    Autograd has run before, so that a function gets and gives plain tensors. The class of such modes has no
    public module. 2.13.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Prepare; `functions` are by the names of `schema_name`, and take what the operators take."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._functions = functions

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, or else the operator; inside of it, all operators are ATen's."""
        return self._functions.get(schema_name(func), func)(*args, **(kwargs or {}))


def scaled_product(a: Tensor, b: Tensor, scales: tuple[Tensor, Tensor], **options: Any) -> Tensor:
    """Compute the FP8 product (scale of a x a) @ (scale of b x b) on a GPU.

    The public `torch.nn.functional.scaled_mm` came with 2.10; this has kept its arguments since 2.5. 2.13.

    Args:
        a: shape (rows, inner), in FP8, row by row.
        b: shape (inner, columns), in FP8, column by column.
        scales: of a and b, FP32, of a single number.
        options: `bias` and `out_dtype`.
    """
    return torch._scaled_mm(a, b, scale_a=scales[0], scale_b=scales[1], **options)


def convolve(op: nn.Conv2d, value: Tensor, weight: Tensor) -> Tensor:
    """Compute a convolution with another weight, by its part that knows all ways of padding. 2.13.

    Args:
        op: the convolution, whose padding, stride and bias count.
        value: its input.
        weight: in place of its own weight.
    """
    result: Tensor = op._conv_forward(value, weight, op.bias)
    return result


def padded(op: nn.Conv2d, value: Tensor) -> Tensor:
    """Return the input of a convolution with its padding; the module itself works out "same". 2.13."""
    mode = "constant" if op.padding_mode == "zeros" else op.padding_mode
    return nn.functional.pad(value, op._reversed_padding_repeated_twice, mode=mode)


def lazy_graphs() -> AbstractContextManager[Any]:
    """Write no Python code of intermediate graphs while exporting; no public setting for it. 2.13."""
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    return _use_lazy_graph_module(True)


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Record no stack trace of every node while exporting; the setting came after 2.5, and may go. 2.13."""
    before = getattr(fx_config, _NO_TRACES, False)
    setattr(fx_config, _NO_TRACES, True)
    try:
        yield
    finally:
        setattr(fx_config, _NO_TRACES, before)


def without_modes() -> AbstractContextManager[Any]:
    """Compute what stands inside a `with`, although a trace is under way; nothing public does. 2.13."""
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


@contextmanager
def without_autocast_on(device: str) -> Iterator[None]:
    """Let `torch.autocast(device, ...)` do nothing: 2.13 refuses "meta", and transformers 4 asks for it."""
    autocast = torch.autocast

    def replacement(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == device else autocast(device_type, *args, **kwargs)

    torch.autocast = replacement  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
