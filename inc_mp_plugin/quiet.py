"""Holding back what other libraries log, for the command line only."""

from __future__ import annotations

import logging
import os
import warnings

_LOGGERS = (
    "neural_compressor",
    "torchao",
    "transformers",
    "huggingface_hub",
    "accelerate",
    "datasets",
    "lm_eval",
    "torch.utils._pytree",
)


def silence_third_parties() -> None:
    """Let INC, torch, torchao, transformers and lm-eval report errors only.

    INC reads its log levels from the environment when it is imported, so this comes before.
    """
    os.environ.setdefault("LOGLEVEL", "ERROR")
    os.environ.setdefault("LOG_LEVEL_INC", "5")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
