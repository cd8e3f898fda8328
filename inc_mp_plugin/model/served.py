"""A model in vLLM, which runs in the Python of another environment, and gives logits of whole samples."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError, few
from inc_mp_plugin.libraries import vllm

# What vLLM logs of tensors that it has no place for, or that it has not found.
_SKIPPED = re.compile(r"not found in params_dict|not found the expected name|were not initialized from")


class ServerFacts(NamedTuple):
    """Facts about a server: vLLM's version, the dtype of the model, and modules in FP8 by their kernel."""

    version: str
    dtype: str
    kernels: dict[str, int]


class Server:
    """A process of vLLM with a checkpoint, started when it is first asked."""

    def __init__(self, python: str, checkpoint: Path, *, dtype: str, length: int) -> None:
        """Prepare; nothing has started yet.

        Args:
            python: of the environment that has vLLM.
            checkpoint: folder of it.
            dtype: that it runs in, in vLLM's words; "auto" for that of the checkpoint.
            length: the largest number of tokens of a sample.
        """
        self._python, self.checkpoint, self.dtype = python, checkpoint.resolve(), dtype
        self._length = length
        self._files = tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[str] | None = None

    @property
    def _log(self) -> Path:
        return Path(self._files.name, "log")

    @cached_property
    def facts(self) -> ServerFacts:
        """Facts about the server, which is started for them.

        Raises:
            InputError: vLLM is not there, does not load the checkpoint, or skips tensors of it.
        """
        script = Path(vllm.__file__).read_text(encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["PATH"] = f"{Path(self._python).parent}{os.pathsep}{environment.get('PATH', '')}"
        settings = (str(self.checkpoint), self.dtype, str(self._length), self._files.name)
        arguments = [self._python, "-c", script, *settings]
        try:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=self._files.name,
                    env=environment,
                )
        except OSError as error:
            message = f"{self._python} cannot be run: {error.strerror}; give the Python of vLLM's environment"
            raise InputError(message) from None
        facts = ServerFacts(**self._answer())
        skipped = [line for line in self._lines() if _SKIPPED.search(line)]
        if skipped:
            message = f"vLLM has no place for tensors of {self.checkpoint}: {few(skipped)}"
            raise InputError(message)
        return facts

    def logits(self, samples: list[list[int]], *, alone: bool) -> list[Tensor]:
        """Return the logits of each sample, shape (tokens, words).

        Args:
            samples: their tokens.
            alone: run them one after the other instead of together.

        Raises:
            InputError: vLLM fails.
        """
        answer = self._answer({"samples": samples, "alone": alone})
        dtype, words = getattr(torch, answer["dtype"]), answer["words"]
        paths = [Path(self._files.name, name) for name in answer["files"]]
        read = [torch.from_numpy(np.fromfile(path, np.uint8)).view(dtype).view(-1, words) for path in paths]
        for path in paths:
            path.unlink()
        return read

    def stop(self) -> None:
        """End the process, if there is one, and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._files.cleanup()

    def _answer(self, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read a line of the process, after a request if there is one."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            message = "the server was asked before it was started"
            raise RuntimeError(message)
        line = ""
        try:
            if request is not None:
                process.stdin.write(f"{json.dumps(request)}\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:  # it has ended, and its log says why
            pass
        if not line:
            raise InputError(self._why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lines(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    def _why_it_ended(self) -> str:
        """Say why the process has ended, from the last error in its log."""
        errors = [line for line in self._lines() if re.search(r"^(\S+ )*\S*(Error|Exception)\b", line)]
        why = errors[-1].strip() if errors else "it says nothing"
        if "No module named 'vllm'" in why:
            return (
                f"{self._python} has no vLLM; give the Python of an environment that has it, by "
                "--vllm-python or in INC_MP_VLLM_PYTHON"
            )
        return f"vLLM stopped with {self.checkpoint}: {why}"


class ServedModel(nn.Module):
    """A language model that runs in a server: token ids in, logits out, without gradients."""

    def __init__(self, server: Server, *, alone: bool = False) -> None:
        """Name the server; `alone` runs the samples of a batch one after the other."""
        super().__init__()
        self._server, self._alone = server, alone

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """Return `logits`, shape (samples, tokens, words), zeros where a token is padding.

        Args:
            input_ids: shape (samples, tokens).
            attention_mask: of the same shape, 0 where a token is padding; None without padding.

        Raises:
            NonFiniteError: a logit is NaN.
        """
        self._server.facts  # noqa: B018, starts it
        own = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        masks = [mask.bool() for mask in own]
        samples = [ids[mask].tolist() for ids, mask in zip(input_ids, masks, strict=True)]
        parts = self._server.logits(samples, alone=self._alone)
        logits = parts[0].new_zeros(*input_ids.shape, parts[0].shape[-1])
        for number, (part, mask) in enumerate(zip(parts, masks, strict=True)):
            if bool(part.isnan().any()):
                message = f"vLLM gives logits that are NaN with {self._server.checkpoint}"
                raise NonFiniteError(message)
            logits[number, mask] = part
        return SimpleNamespace(logits=logits)
