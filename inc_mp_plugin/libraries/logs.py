"""Loggers to silence, and environment variables that silence libraries.

Last checked with the versions beside each.
"""

# Loggers, with what they say that a user of the command line has no use for.
LOGGERS = (
    "neural_compressor",  # INC 3.10: every step of its own
    "torchao",  # 0.18: kernels that are not for this machine
    "transformers",  # 5.24: deprecations of its own
    "huggingface_hub",  # 2.4: requests without a token
    "accelerate",  # 1.15
    "datasets",  # lm-eval's
    "lm_eval",  # 0.4.13: tasks that it adds up
    "torch.utils._pytree",  # 2.13: what torchao registers the old way
)
# Read when a library is imported, so they are set before.
ENVIRONMENT = {
    "LOGLEVEL": "ERROR",  # INC's, and Gaudi's software's
    "LOG_LEVEL_INC": "5",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
