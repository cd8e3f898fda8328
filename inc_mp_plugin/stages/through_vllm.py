"""A plan measured in vLLM: its checkpoint, and that of the base model, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.served import ServedModel, Server
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.store import file_fingerprint, fingerprint

if TYPE_CHECKING:
    from torch import nn

# Kernels whose weights alone are in FP8, so that activations are not rounded.
_WEIGHTS_ALONE = ("CPUFp8PerTensorScaledMMLinearKernel", "MarlinFP8ScaledMMLinearKernel")

_FP32 = "float32"


@dataclass
class ThroughVllm:
    """Two checkpoints in vLLM, of which one at a time is loaded.

    Attributes:
        python: of the environment that has vLLM.
        base: folder of the base model.
        checkpoint: folder of the plan's.
        length: the largest number of tokens of a sample.
        asked: dtype that both run in; "auto" for that of the checkpoint.
    """

    python: str
    base: Path
    checkpoint: Path
    length: int
    asked: str = "auto"
    runs: None = None
    _runs_in: str = ""
    _servers: list[Server] = field(default_factory=list, repr=False)

    def identify(self) -> dict[str, str]:
        """Return what identifies the measurement beside the base model and the samples."""
        settings = {"served.python": self.python, "served.dtype": self.asked}
        return {**settings, "served.checkpoint": fingerprint_of(self.checkpoint)}

    @property
    def dtype(self) -> str:
        """The dtype that both run in; the base model is loaded if that is not known."""
        if not self._runs_in:
            self._runs_in = self._server(self.base, self.asked).facts.dtype
        return self._runs_in

    @contextmanager
    def lowered(self, formats: Mapping[str, str]) -> Iterator[nn.Module]:
        """Run the plan's checkpoint, or the base model if no op is lowered."""
        server = self._server(self.checkpoint if formats else self.base, self.asked)
        self._runs_in = server.facts.dtype
        yield ServedModel(server)

    @contextmanager
    def otherwise(self) -> Iterator[nn.Module | None]:
        """Run the base model in FP32, sample by sample; yield None where vLLM does not run it so."""
        try:
            server = self._server(self.base, _FP32)
        except InputError as error:
            say(f"the floor of the KL divergence is not known: {error}")
            yield None
            return
        yield ServedModel(server, alone=True)

    def stop(self) -> None:
        """End the server, if one is running."""
        while self._servers:
            self._servers.pop().stop()

    def _server(self, folder: Path, dtype: str) -> Server:
        """Return the server of a checkpoint in a dtype, in the place of another."""
        running = [(server.checkpoint, server.dtype) for server in self._servers]
        if running != [(folder.resolve(), dtype)]:
            self.stop()
            say(f"vLLM loads {folder} ...")
            server = Server(self.python, folder, dtype=dtype, length=self.length)
            self._servers.append(server)
            say(_told(server))
        return self._servers[-1]


def fingerprint_of(folder: Path) -> str:
    """Hash the names and contents of the files of a checkpoint."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return fingerprint({path.name: file_fingerprint(path) for path in paths})


def _told(server: Server) -> str:
    """Say what a server runs its modules with."""
    facts = server.facts
    text = f"vLLM {facts.version} runs it in {facts.dtype}"
    if not facts.kernels:
        return text
    each = ", ".join(f"{count} by {name}" for name, count in sorted(facts.kernels.items()))
    alone = [name for name in facts.kernels if name in _WEIGHTS_ALONE]
    end = "; activations are not rounded there, so that the prediction is too high" if alone else ""
    return f"{text}, and modules in FP8: {each}{end}"
