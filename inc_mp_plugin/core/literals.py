"""The words that recipes, artefacts and arguments know: each list stands here and nowhere else."""

from __future__ import annotations

from typing import Literal, get_args

Strategy = Literal["ip_mse", "eagl", "alps", "random", "prefix", "uniform"]
Objective = Literal["memory", "theoretical_time", "bit_operations", "roofline", "empirical_time"]
Yardstick = Literal["loss", "kl"]
Estimator = Literal["sample", "batch"]
Memory = Literal["auto", "low", "high"]  # that a sensitivity pass takes
Parallel = Literal["samples", "fsdp"]  # spread over several processes: samples alone, or weights, too
DeviceMap = Literal["auto"]  # of the places that the weights of a model are kept in
Per = Literal["token", "sample"]  # of a KL divergence
Through = Literal["inc", "hooks", "vllm"]  # what lowers the ops of a model that is measured
Measuring = Literal["auto", "inc", "hooks"]  # "auto": the plan through INC, all others through hooks
THROUGH: tuple[Measuring, ...] = get_args(Measuring)
NoiseModel = Literal["uniform", "log_uniform", "measured"]
Accelerator = Literal["gaudi2", "gaudi3", "h100", "cpu"]
TimedDevice = Literal["cpu", "cuda", "hpu"]
IncDevice = Literal["cpu", "hpu"]
OpKind = Literal["linear", "conv2d", "bgemm", "experts"]  # the last while a graph is captured
Unit = Literal["s", "byte", "bit operation"]
Source = Literal["measured", "modelled", "exact"]
KVCache = Literal["bf16", "fp8"]
Attention = Literal["eager", "flash"]
Scheme = Literal["dynamic", "static"]  # scales of activations in a checkpoint: per token, or measured
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
ValueMethod = Literal["eagl", "alps"]
Labels = Literal["all", "answers"]
Weights = Literal["trained", "random", "in_memory"]
IN_MEMORY: Weights = "in_memory"  # weights of a model that `mp.tune` was given, as recipe.json has it
