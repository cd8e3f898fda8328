"""Consumers of plans: what each can run, and how it must be told."""

from __future__ import annotations

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.targets.cpu import CPU_BF16 as CPU_BF16
from inc_mp_plugin.targets.cpu import CPU_QDQ as CPU_QDQ
from inc_mp_plugin.targets.optimum_habana import OPTIMUM_HABANA as OPTIMUM_HABANA
from inc_mp_plugin.targets.target import Target
from inc_mp_plugin.targets.vllm import VLLM as VLLM
from inc_mp_plugin.targets.vllm_gaudi import VLLM_GAUDI as VLLM_GAUDI

TARGETS = {target.name: target for target in (CPU_BF16, CPU_QDQ, OPTIMUM_HABANA, VLLM, VLLM_GAUDI)}


def get_target(name: str) -> Target:
    """Look a target up by its name.

    Raises:
        InputError: there is no target of that name.
    """
    if name not in TARGETS:
        raise InputError(unknown("target", name, TARGETS))
    return TARGETS[name]


def check_scale_method(target: Target, name: str | None) -> str:
    """Return the scale method of a target: the one of this name, or its default if None.

    Raises:
        InputError: the target does not run it.
    """
    if name is None:
        return target.scale_methods[0]
    if name not in target.scale_methods:
        raise InputError(unknown(f"scale_method of target {target.name}", name, target.scale_methods))
    return name
