"""The experiment on an accelerator: `run.sh` is how it is run."""
