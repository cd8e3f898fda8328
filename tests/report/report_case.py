"""A small plan, made by hand, and everything that can be shown beside it."""

import numpy as np

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.core.frontier import Curve, Frontier
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op, Unsupported
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Point, Round, Stability, Validation, Verification
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.core.timings import TimedGroup, TimedPlan, TimeValidation
from inc_mp_plugin.report.artefacts import RunArtefacts

OPS = ("m.layers.0.up", "m.layers.0.down", "m.layers.1.up", "head<&>")
FORMATS = dict(zip(OPS, ("fp8_e4m3", "fp8_e4m3", "bf16", "fp8_e4m3"), strict=True))
UP, DOWN, LATER, HEAD = OPS


def gains():
    pair = GroupGains(OPS[:2], (("bf16", "bf16"), ("fp8_e4m3", "fp8_e4m3")), (0.0, 6e6), (0.0, 0.0))
    single = [GroupGains((op,), (("bf16",), ("fp8_e4m3",)), (0.0, 3e6), (0.0, 0.0)) for op in OPS[2:]]
    return Gains("memory", "byte", "exact", "bf16", (pair, *single))


def plan(**changes):
    values = {
        "strategy": "ip_mse",
        "objective": "memory",
        "unit": "byte",
        "source": "exact",
        "base": "bf16",
        "noise": "uniform",
        "tau": 0.1,
        "correction": 1.0,
        "loss_budget": 1 / 768 * 10,
        "loss_mse": 1 / 768 * 7,
        "interval": Interval(1 / 768 * 5, 1 / 768 * 9),
        "confidence": 0.95,
        "nrmse": 0.08,
        "gain": 9e6,
        "largest_gain": 12e6,
        "binds": True,
        "status": "proved optimal",
        "gap": 0.0,
        "seconds": 0.0,
        "formats": FORMATS,
    }
    return Plan(**{**values, **changes})


def losses():
    """Prices of the ops by the noise of the paper."""
    return Costs(sensitivity())


def sensitivity():
    return Sensitivity(OPS, np.ones(1), np.array([[1.0, 2.0, 9.0, 4.0]]), np.zeros((1, 4)))


def graph(*unsupported):
    ops = tuple(Op(name, "linear", 1000, 100, 1) for name in OPS)
    return Graph(ops, tuple((name,) for name in OPS), unsupported, {})


def artefacts(**changes):
    values = {
        "folder": "runs/x",
        "recipe": {"model": {"name_or_path": "org/Tiny<&>"}, "objective": "memory", "tau": 0.1},
        "graph": graph(),
        "losses": losses(),
        "runnable": OPS,
        "gains": {"memory": gains()},
        "plan": plan(),
        "stability": Stability(20, {}, 9e6, 9e6, 9e6),
    }
    return RunArtefacts(**{**values, **changes})


FRONTIER = Frontier(
    "memory",
    "byte",
    "exact",
    1.0,
    12e6,
    (
        Curve(
            "ip_mse",
            0,
            (0, 2, 4),
            (0.0, 6e6, 12e6),
            (0.0, 0.01, 0.04),
            (0.0, 0.0025, 0.01),
            (0.0, 0.04, 0.09),
        ),
        Curve("prefix", 0, (0, 4), (0.0, 12e6), (0.0, 0.04), (0.0, 0.01), (0.0, 0.09)),
        Curve("random", 0, (0, 4), (0.0, 12e6), (0.0, 0.04), (0.0, 0.01), (0.0, 0.09)),
        Curve("random", 1, (0, 4), (0.0, 12e6), (0.0, 0.04), (0.0, 0.01), (0.0, 0.09)),
    ),
    1,
)
NEAR, FAR = Interval(1.5e-6, 5e-6), Interval(0.0, 1e-6)
VALIDATION = Validation(
    8,
    2.0,
    0.1,
    0.05,
    Point(("b",), 3e-6, FAR, 1.5e-6),
    (
        Point(("a", "b"), 4e-6, FAR, 4e-6, Interval(2e-6, 9e-6)),
        Point(("a",), 1e-6, NEAR, 2e-6),
        Point((), 0.0, FAR, 0.0),
    ),
    0.987,
    0.83,
    Interval(0.041, 0.07),
    0.9,
)
TIMES = TimeValidation(
    "cpu",
    "a CPU",
    0.25,
    (
        TimedPlan("memory", 0.1, ("a", "b"), 0.100, 0.002, 0.104, 0.001),
        TimedPlan("memory", 0.2, ("a", "b", "c"), 0.100, 0.002, 0.120, 0.001),
        TimedPlan("empirical_time", 0.1, (), 0.0, 0.0, 0.0, 0.0),
    ),
    (TimedGroup(("m.layers.0.q", "m.layers.0.k"), 0.030, 0.001, 0.045, 2_500_000),),
)
TESTED = (
    Round(1.0, 0.08, 0.05, 6e6, 2, Interval(0.04, 0.07)),
    Round(2.0, 0.12, 0.09, 9e6, 3, Interval(0.08, 0.098)),
    Round(3.0, 0.14, 0.1, 12e6, 4, Interval(0.09, 0.12)),
)
VERIFICATION = Verification(0.1, 8, TESTED, 1, 0.9)
INTERVAL = Interval(1e-6, 4e-6)


def trial(strategy, level, gain, quantized, seed=0, measured=None, **scores):
    return Trial(strategy, seed, level, gain, quantized, 2e-6, INTERVAL, measured, scores)


def experiment(name, *trials, **base_scores):
    return Experiment(name, "memory", "byte", "exact", 12e6, 8, 1.0, OPS, trials, base_scores)


CHOICES = experiment(
    "choices",
    trial("ip_mse", 0.1, 9e6, (UP, DOWN, HEAD)),
    trial("random", 0.1, 3e6, (LATER,)),
    trial("random", 0.1, 3e6, (HEAD,), seed=1),
)
PREDICTION = experiment("prediction", trial("ip_mse", 0.5, 6e6, (UP, DOWN), measured=1e-6))
CURVE = experiment(
    "curve",
    trial("random", 0.5, 6e6, (UP, DOWN), measured=2e-6),
    trial("random", 0.5, 9e6, (UP, DOWN, HEAD), seed=1, measured=4e-6),
    trial("ip_mse", 0.5, 6e6, (UP, DOWN), measured=1e-6),
    trial("ip_mse", 0.2, 3e6, (HEAD,), measured=0.0),
)
METHODS = experiment(
    "methods",
    trial("ip_mse", 0.5, 6e6, (UP, DOWN), measured=1e-6),
    trial("eagl", 0.5, 9e6, (UP, DOWN, HEAD), measured=3e-6),
    trial("alps", 0.5, 6e6, (UP, DOWN), measured=1e-6),
)
ACCURACY = experiment(
    "accuracy",
    trial("ip_mse", 0.5, 6e6, (UP, DOWN), **{"piqa/acc": 0.49, "wiki/perplexity": 22.0}),
    trial("ip_mse", 0.5, 6e6, (UP, DOWN), seed=1, **{"piqa/acc": 0.51, "wiki/perplexity": 22.0}),
    **{"piqa/acc": 0.5, "wiki/perplexity": 20.0},
)
EVERYTHING = {
    "graph": graph(Unsupported("m.<experts>", "_grouped_mm", "one fused parameter")),
    "stability": Stability(20, {LATER: 0.5, UP: 0.1}, 9e6, 6e6, 12e6),
    "frontiers": {"memory": FRONTIER},
    "validation": VALIDATION,
    "time": TIMES,
    "verification": VERIFICATION,
    "experiments": (CHOICES, PREDICTION, CURVE, METHODS, ACCURACY),
}
