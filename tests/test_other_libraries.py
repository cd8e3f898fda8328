"""What we lean on beside torch, transformers and INC, each library tried by itself."""

import inspect
import re
from importlib.util import find_spec

import numpy as np
import pytest
from torch import nn

from inc_mp_plugin.libraries import lm_eval as of_lm_eval


@pytest.mark.skipif(not find_spec("lm_eval"), reason="lm-eval is not installed")
def test_lm_eval_wrapper():
    from lm_eval.models.huggingface import HFLM

    class Wrapper:
        def loglikelihood(self, requests, disable_tqdm=False):
            return disable_tqdm

        loglikelihood_rolling = _loglikelihood_tokens = generate_until = loglikelihood

    quiet = of_lm_eval.without_bars(Wrapper())
    names = [name for name in vars(quiet) if callable(getattr(quiet, name))]
    assert len(names) == 4
    assert all(getattr(quiet, name)([]) is True for name in names)
    assert all("disable_tqdm" in inspect.signature(getattr(HFLM, name)).parameters for name in names)
    assert "tie_weights" in inspect.getsource(HFLM)
    model = nn.Linear(2, 2)
    with of_lm_eval.weights_left_untied(model):
        assert model.tie_weights() is None
    assert not hasattr(model, "tie_weights")


def test_accelerate_makes_models_without_weights():
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = nn.BatchNorm1d(2)
    assert module.weight.is_meta
    assert not module.running_mean.is_meta


def test_accelerate_leaves_hooks_on_a_model_that_it_moves():
    from accelerate import cpu_offload, dispatch_model

    from inc_mp_plugin.libraries.accelerate import is_dispatched

    model = nn.Sequential(nn.Linear(2, 2))
    assert not is_dispatched(model)
    assert not is_dispatched(dispatch_model(model, {"": "cpu"}))  # all on one device
    assert is_dispatched(cpu_offload(model, execution_device="cpu"))


@pytest.mark.skipif(not find_spec("peft"), reason="PEFT is not installed")
def test_peft_casts_to_the_dtype_of_a_weight():
    from peft.tuners.lora.layer import Linear

    from inc_mp_plugin.libraries.peft import CAST

    source = inspect.getsource(Linear.forward)
    assert re.search(rf"(?:\.to\(|{CAST})lora_A\.weight\.dtype", source)
    assert "lora_A = self.lora_A[active_adapter]\n" in source


def test_rich_lines_and_tables():
    from io import StringIO

    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    console = Console(file=StringIO(), width=20, highlight=False)
    text = f"[bold]is no markup[/bold] {'x' * 50}"
    console.print(text, markup=False, soft_wrap=True)
    assert console.file.getvalue() == f"{text}\n"
    table = Table()
    table.add_column("y" * 50, no_wrap=True)
    assert Measurement.get(console, console.options.update(max_width=1000), table).maximum >= 50


def test_typer_exit_codes_and_arguments():
    import typer
    from typer.testing import CliRunner

    app, seen = typer.Typer(add_completion=False, pretty_exceptions_enable=False), []
    passing = {
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }

    @app.command(context_settings=passing)
    def run(context: typer.Context, script: str) -> None:
        seen.append((script, context.args))

    @app.command()
    def end(code: int) -> None:
        raise typer.Exit(code)

    def code(*arguments):
        return CliRunner().invoke(app, arguments).exit_code

    assert [code("end", "3"), code("end", "x"), code("none")] == [3, 2, 2]
    assert code("run", "a.py", "--b", "-c", "d") == 0
    assert seen == [("a.py", ["--b", "-c", "d"])]


def test_highspy_prices_and_choices():
    """Two groups, each worth 2 for 0.3 of a capacity of 0.4: one whole and a third of the other."""
    import math

    from inc_mp_plugin.solver import highs
    from inc_mp_plugin.solver.milp import Candidate, choose, price
    from inc_mp_plugin.solver.search import Knapsack

    groups = [[Candidate(0.0, 0.0), Candidate(2.0, 0.3)]] * 2
    assert price(groups, 0.4) == pytest.approx(2.0 / 0.3)
    assert sorted(choose(groups, 0.4).picks) == [0, 1]
    zero_or = [(np.array([0.0, size]),) * 2 for size in (1.0, 0.75)]
    assert sorted(highs.solve_integer(Knapsack(*zero_or, 1.0), [], math.inf).picks) == [0, 1]
