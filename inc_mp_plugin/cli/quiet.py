"""Silencing of other libraries, for the command line only."""

from __future__ import annotations

import logging
import os
import warnings

from inc_mp_plugin.libraries.logs import ENVIRONMENT, LOGGERS


def silence_third_parties() -> None:
    """Let INC, torch, torchao, transformers and lm-eval report errors only.

    INC reads its log levels from the environment when it is imported, so this comes before.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
