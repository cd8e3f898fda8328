"""Python scripts in processes of their own that share one slow start, the import of the libraries.

`run` is `subprocess.run([sys.executable, *arguments])`, but the process is forked from a server that has
imported torch, transformers and INC, and nothing of the plugin. What a script does, it does from the start.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = [
    "torch",
    "torch._dynamo",
    "torch.export",
    "transformers",
    "transformers.modeling_layers",
    "transformers.models.llama.modeling_llama",
    "neural_compressor.torch.quantization",
    "typer.testing",
]


def run(*arguments, **environment):
    """Run a script, or a module after "-m", with the environment added to this process's."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LIBRARIES)
    arguments = [str(argument) for argument in arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "stdout", Path(folder) / "stderr"]
        process = server.Process(target=_become, args=(arguments, Path.cwd(), environment, files))
        process.start()
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, *(f.read_text() for f in files))


def _become(arguments, folder, environment, files):
    """Be what `python ARGUMENTS` in this folder would be."""
    for number, file in enumerate(files, start=1):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        sys.path.insert(0, str(folder))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
