"""What a report says, by equality with what was worked out by hand."""

import json

import numpy as np
import pytest
from report_case import (
    ACCURACY,
    CHOICES,
    CURVE,
    DOWN,
    EVERYTHING,
    FORMATS,
    HEAD,
    LATER,
    METHODS,
    OPS,
    PREDICTION,
    UP,
    artefacts,
    losses,
    plan,
)

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.results import Stability
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.report.blocks import (
    Bars,
    Chart,
    Code,
    MapCell,
    MapGrid,
    Missing,
    Section,
    Series,
    Tile,
    Tiles,
)
from inc_mp_plugin.report.document import report_info


def section(key, **changes):
    info = report_info(artefacts(**changes))
    return next(part for part in info.sections if part.key == key)


def near(*values):
    return tuple(pytest.approx(value) for value in values)


def test_order_and_titles():
    info = report_info(artefacts(**EVERYTHING))
    assert info.title == "Mixed-precision plan of Tiny<&>"
    assert info.subtitle == "objective memory · strategy ip_mse · tau 0.1"
    assert [part.key for part in info.sections] == [
        *("plan", "map", "budget", "frontier", "validation", "time", "loop"),
        *("choices", "prediction", "curve", "methods", "accuracy", "uncertainty", "left-out", "reproduce"),
    ]
    names = [figure.name for figure in info.figures]
    assert len(set(names)) == len(names) == 15


def test_headline():
    text = (
        "3 of 4 ops run in fp8_e4m3, the others in bf16.",
        "Gain (memory, exact): 9 MB, 75.0 % of the largest there is.",
        "Predicted NRMSE of the loss: 0.08 (tau 0.1; ip_mse: proved optimal, gap 0); 95 % interval for as "
        "many fresh samples: 0.06761 to 0.09071.",
    )
    tiles = (
        Tile("Ops lowered", "3 of 4", "to fp8_e4m3 from bf16"),
        Tile("Gain: memory", "9 MB", "75.0 % of the largest there is"),
        Tile("NRMSE of the loss, predicted", "0.08", "95 % interval 0.0676 to 0.0907"),
        Tile("NRMSE of the loss, measured", "–", "run `inc-mp validate runs/x`"),
        Tile("Threshold tau", "0.1", "within it by the prediction, not measured"),
    )
    assert section("plan") == Section("plan", "The plan", (Tiles(tiles), *text))


def test_what_was_measured_decides_whether_tau_held():
    by_loop = section("plan", verification=EVERYTHING["verification"], plan=plan(correction=2.0)).blocks[0]
    assert by_loop.tiles[3].value == "0.09"
    assert by_loop.tiles[4] == Tile("Threshold tau", "0.1", "held, as measured", "good")
    other = section("plan", verification=EVERYTHING["verification"]).blocks[0]
    assert other.tiles[3].value == "–"
    both = section("plan", **EVERYTHING | {"plan": plan(tau=0.04)}).blocks[0]
    note = "interval 0.041 to 0.07, through INC, 8 held-out samples"
    assert both.tiles[3] == Tile("NRMSE of the loss, measured", "0.05", note)
    assert both.tiles[4] == Tile("Threshold tau", "0.04", "exceeded, as measured", "bad")
    between = section("plan", **EVERYTHING | {"plan": plan(tau=0.06)}).blocks[0]
    assert between.tiles[4] == Tile("Threshold tau", "0.06", "not decided, as measured", "")


def test_map():
    layers, outside = section("map").blocks[0].grids
    words = "fp8_e4m3, {} % of the allowance, 25.0 % of the largest gain"
    up = MapCell("", "10.0", "25.0", f"layer 0 up: {words.format('10.0')}", 3, ("0", "up"))
    down = MapCell("", "20.0", "25.0", f"layer 0 down: {words.format('20.0')}", 3, ("0", "down"))
    why = "bf16, it would take 90.0 % of the allowance for 25.0 % of the largest gain"
    base = MapCell("", "·", "", f"layer 1 up: {why}", 0, ("1", "up"))
    head = MapCell("", "40.0", "25.0", f"head<&>: {words.format('40.0')}", 4, ("", "head<&>"))
    assert layers == MapGrid("layer", ("up", "down"), (("0", (up, down)), ("1", (base, None))))
    assert outside == MapGrid("op outside of layers", ("plan",), (("head<&>", (head,)),))


def test_budget():
    text, kinds, ops = section("budget").blocks
    assert text == (
        "70.0 % of the allowance is spent, 30.0 % is left. The 3 most expensive of 3 lowered ops take 70.0 %."
    )
    label, many = "share of the allowance, %", pytest.approx
    shares = {"head<&> (1)": 40.0, "down (1)": 20.0, "up (1)": 10.0, "not used": 30.0}
    rows = tuple((name, many(share), f"{share:.1f}") for name, share in shares.items())
    asked = "Which kinds of op take the allowance? In brackets: how many are lowered."
    assert kinds == Bars("budget-kinds", asked, label, rows)
    shares = {"head<&>": 40.0, "layer 0 down": 20.0, "layer 0 up": 10.0}
    rows = tuple((name, many(share), f"{share:.1f}") for name, share in shares.items())
    assert ops == Bars("budget-ops", "Which single ops take most of it?", label, rows)


def test_ops_whose_shortened_labels_coincide_both_count():
    ops = ("encoder.a_projection_with_a_long_name.down", "decoder.a_projection_with_a_long_name.down")
    formats = dict.fromkeys(ops, "fp8_e4m3")
    groups = [GroupGains((op,), (("bf16",), ("fp8_e4m3",)), (0.0, 3e6), (0.0, 0.0)) for op in ops]
    text, kinds, chart = section(
        "budget",
        runnable=ops,
        gains={"memory": Gains("memory", "byte", "exact", "bf16", tuple(groups))},
        losses=Costs(Sensitivity(ops, np.ones(1), np.array([[1.0, 2.0]]), np.zeros((1, 2)))),
        plan=plan(formats=formats, gain=6e6, largest_gain=6e6),
    ).blocks
    assert text == (
        "30.0 % of the allowance is spent, 70.0 % is left. The 2 most expensive of 2 lowered ops take 30.0 %."
    )
    assert [(label, share) for label, _, share in chart.rows] == [
        ("…jection_with_a_long_name.down", "20.0"),
        ("…jection_with_a_long_name.down", "10.0"),
    ]
    assert [(label, share) for label, _, share in kinds.rows] == [("down (2)", "30.0"), ("not used", "70.0")]


def test_a_plan_that_lowers_nothing():
    info = report_info(
        artefacts(plan=plan(formats=dict.fromkeys(OPS, "bf16"), loss_mse=0.0, nrmse=0.0, gain=0.0))
    )
    assert info.sections[2].blocks == ("No op is lowered, so none is spent.",)


def test_frontier():
    chart, table = section("frontier", **EVERYTHING).blocks
    ends = ((0.0, 100.0), (0.0, 0.2))
    assert chart.series == (
        Series("random", "random_curve", *ends),
        Series("", "random_curve", *ends),
        Series("prefix", "prefix_curve", *ends),
        Series(
            "ip_mse, with its interval",
            "ip_mse",
            (0.0, 50.0, 100.0),
            near(0.0, 0.1, 0.2),
            near(0.0, 0.05, 0.1),
            near(0.0, 0.2, 0.3),
            band=True,
        ),
        Series("knee", "knee", (50.0,), (0.1,)),
        Series("the plan", "plan", (75.0,), (0.08,)),
    )
    assert table.rows[1] == ("6 MB", "50.0 knee", "2", "0.1", "0.05 to 0.2", "0.2", "0.2", "0.1")
    assert table.marked == (1,)


def test_validation_leaves_zeros_out_of_logarithms():
    text, chart, table = section("validation", **EVERYTHING).blocks
    assert text.startswith(
        "On 8 held-out samples through INC, the plan's NRMSE is 0.05 (0.041 to 0.07) (tau 0.1: held; in "
        "brackets, a 90 % interval)."
    )
    assert chart.series == (
        Series("measured = predicted", "reference", (1e-6, 4e-6), (1e-6, 4e-6)),
        Series("random plans", "point", (4e-6, 1e-6), (4e-6, 2e-6), x_low=(0.0, 1.5e-6), x_high=(1e-6, 5e-6)),
        Series("the plan", "plan", (3e-6,), (1.5e-6,), x_low=(0.0,), x_high=(1e-6,)),
    )
    assert table.rows == (
        ("the plan: 1", "3.000e-06", "0.00e+00 to 1.00e-06", "1.50e-06 !", "2.00"),
        ("0", "0.000e+00", "0.00e+00 to 1.00e-06", "0.00e+00", "–"),
        ("1", "1.000e-06", "1.50e-06 to 5.00e-06", "2.00e-06", "0.50"),
        ("2", "4.000e-06", "0.00e+00 to 1.00e-06", "4.00e-06 (2.00e-06 to 9.00e-06) !", "1.00"),
    )


def test_time():
    text, plans, _, groups, macs, _ = section("time", **EVERYTHING).blocks
    assert text.startswith("1 of 2 plans save what their groups add up to")
    line, points = plans.series
    assert line == Series("", "reference", (0.0, 120.0), (0.0, 120.0))
    assert points == Series(
        "",
        "point",
        near(100.0, 100.0),
        near(104.0, 120.0),
        near(102.0, 118.0),
        near(106.0, 122.0),
        near(96.0, 96.0),
        near(104.0, 104.0),
    )
    assert groups.series[1] == Series("", "point", near(45.0), near(30.0), near(28.0), near(32.0))
    assert macs.series == (Series("", "point", near(2.5), near(30.0), near(28.0), near(32.0)),)


def test_closed_loop():
    text, chart, table = section("loop", **EVERYTHING).blocks
    assert "upper end of its 90 % interval" in text
    x = (50.0, 75.0, 100.0)
    assert chart.series == (
        Series("tau", "limit", (50.0, 100.0), (0.1, 0.1)),
        Series("predicted", "predicted", x, (0.08, 0.12, 0.14)),
        Series(
            "measured, with its interval",
            "measured",
            x,
            (0.05, 0.09, 0.1),
            (0.04, 0.08, 0.09),
            (0.07, 0.098, 0.12),
        ),
        Series("chosen", "plan", (75.0,), (0.09,)),
    )
    assert table.rows[1] == ("2", "3", "9 MB", "75.0", "0.12", "0.09", "0.08 to 0.098", "held")
    assert table.rows[2][-2:] == ("0.09 to 0.12", "not decided")
    assert table.marked == (1,)


def test_choices():
    strips, table = section("choices", experiments=(CHOICES,)).blocks
    assert strips.rows == (
        ("ip_mse", ((0, 2), (3, 1))),
        ("random 0", ((2, 1),)),
        ("random 1", ((3, 1),)),
    )
    assert (strips.length, strips.ticks) == (4, ((0, "0"), (2, "1")))
    assert table.columns == ("plan", "ops", "gain", "%", "loss MSE, predicted", "interval")
    assert table.rows[0] == ("ip_mse", "3", "9 MB", "75.0", "2.00e-06", "1.00e-06 to 4.00e-06")


def test_prediction():
    chart, agreement, table = section("prediction", experiments=(PREDICTION,)).blocks
    assert agreement.rows == (("loss MSE, ip_mse", "1", "–", "–", "–", "1 of 1"),)
    assert chart.series == (
        Series("measured = predicted", "reference", (1e-6, 2e-6), (1e-6, 2e-6)),
        Series("ip_mse", "ip_mse", (2e-6,), (1e-6,), x_low=(1e-6,), x_high=(4e-6,)),
    )
    assert table.rows == (
        ("ip_mse, 50 %", "2", "6 MB", "50.0", "2.00e-06", "1.00e-06 to 4.00e-06", "1.00e-06", "2.00"),
    )


def test_curve():
    chart, table = section("curve", experiments=(CURVE,)).blocks
    assert chart.series == (
        Series("random, mean of draws", "random", (62.5,), near(3e-6), (2e-6,), (4e-6,), band=True),
        Series("ip_mse", "ip_mse", (50.0,), (1e-6,)),
    )
    assert table.rows == (
        ("20", "–", "0.00e+00"),
        ("50", "3.00e-06 (2.0e-06 to 4.0e-06)", "1.00e-06"),
    )


def test_methods():
    chart, table = section("methods", experiments=(METHODS,)).blocks
    assert [(line.label, line.style) for line in chart.series] == [(m, m) for m in ("ip_mse", "eagl", "alps")]
    assert table.columns == ("gain, %", "ip_mse", "eagl", "alps")
    assert table.rows == (("50", "1.00e-06", "3.00e-06", "1.00e-06"),)


def test_accuracy():
    _, piqa, wiki, table, base = section("accuracy", experiments=(ACCURACY,)).blocks
    spread = 2.0 * 2**0.5
    zero = Series("base format", "reference", (0.0, 100.0), (0.0, 0.0))
    line = Series("ip_mse", "ip_mse", (50.0,), near(0.0), near(-spread), near(spread))
    assert piqa == Chart(
        "accuracy-memory-piqa-acc",
        "What does piqa/acc lose at each gain? Mean and standard deviation over seeds. Above: better.",
        "gain, % of the largest",
        "difference to the base format, %",
        (zero, line),
    )
    assert wiki.series[1] == Series("ip_mse", "ip_mse", (50.0,), near(10.0), near(10.0), near(10.0))
    assert table.columns == ("strategy", "piqa/acc", "wiki/perplexity", "mean")
    assert [cell.lstrip("+-") for cell in table.rows[0]] == [
        *("ip_mse", "0.000 ± 2.83", "10.000 ± 0.00", "0.000 ± 2.83")
    ]
    assert base.rows == (("piqa/acc", "0.5"), ("wiki/perplexity", "20"))


def test_uncertainty():
    text, table = section("uncertainty", **EVERYTHING).blocks
    assert text == (
        "Planned again from 20 redrawn sets of the 1 samples, the gain is 6 MB to 12 MB (the plan: 9 MB), "
        "and 1 of 4 ops change their format in more than a fifth of them. More samples would settle these."
    )
    assert table.rows == ((LATER, "bf16", "50"),)
    (text,) = section("uncertainty", stability=Stability(20, {}, 9e6, 9e6, 9e6)).blocks
    assert text.endswith("the plan stays the same: more samples would hardly change it.")


def test_left_out():
    assert section("left-out").blocks == (
        "Nothing: every matrix product and convolution of the graph is an op of the plan.",
    )
    blocks = section(
        "left-out",
        graph=EVERYTHING["graph"],
        losses=losses().of((UP, DOWN, HEAD)),
        runnable=(UP, DOWN),
    ).blocks
    assert [table.rows for table in blocks] == [
        (("m.<experts>", "_grouped_mm", "one fused parameter"),),
        ((LATER,),),
        ((HEAD,),),
    ]


def test_versions_and_commands():
    settings = {
        "sensitivity": {"versions": {"torch": "2.13", "inc": "3.10"}},
        "plan": {"objective": "memory", "tau": 0.2, "gain_fraction": None},
        "frontier": {"points": 20, "draws": 3},
        "time_validation": {"taus": [0.1, 0.2]},
        "experiments/curve-memory": {"draws": 5},
        "experiments/accuracy-memory": {
            "draws": 3,
            "tasks": ["piqa", "wiki"],
            "limit": 50,
            "include_path": None,
        },
    }
    changes = EVERYTHING | {"experiments": (CURVE, ACCURACY), "folder": "runs/a b"}
    versions, commands, recipe = section("reproduce", **changes, depends_on=settings).blocks
    assert versions.rows == (("inc", "3.10"), ("torch", "2.13"))
    assert commands == Code(
        "Commands that make this folder again.",
        "inc-mp tune recipe.yaml --out 'runs/a b'\n"
        "inc-mp solve 'runs/a b' tau=0.2\n"
        "inc-mp frontier 'runs/a b' --points 20 --draws 3\n"
        "inc-mp validate 'runs/a b'\n"
        "inc-mp validate 'runs/a b' --time --tau 0.1 --tau 0.2\n"
        "inc-mp experiment 'runs/a b' curve --objective memory --draws 5\n"
        "inc-mp experiment 'runs/a b' accuracy --objective memory --task piqa --task wiki "
        "--draws 3 --limit 50\n"
        "inc-mp report 'runs/a b'",
    )
    assert json.loads(recipe.text)["tau"] == 0.1


def test_what_is_missing_is_said_once_with_its_command():
    outdated = {
        "validation": "validation.json is of another plan",
        "experiments/curve-memory": "curve-memory.json is old",
    }
    info = report_info(artefacts(outdated=outdated))
    assert [part.key for part in info.sections] == [
        *("plan", "map", "budget", "uncertainty", "left-out", "absent", "reproduce")
    ]
    assert info.sections[-2].blocks == (
        Missing("The frontier: not made yet.", "inc-mp frontier runs/x"),
        Missing("Measured losses: validation.json is of another plan.", "inc-mp validate runs/x"),
        Missing(
            "Measured times: not made yet.", "inc-mp tune RECIPE.yaml objective=empirical_time --out runs/x"
        ),
        Missing("Measured corrections: not made yet.", "inc-mp tune RECIPE.yaml verify=true --out runs/x"),
        Missing("Experiment choices: not made yet.", "inc-mp experiment runs/x choices"),
        Missing("Experiment prediction: not made yet.", "inc-mp experiment runs/x prediction"),
        Missing("Experiment curve-memory: curve-memory.json is old.", "inc-mp experiment runs/x curve"),
        Missing("Experiment methods: not made yet.", "inc-mp experiment runs/x methods"),
        Missing("Experiment accuracy: not made yet.", "inc-mp experiment runs/x accuracy --task TASK"),
    )


def test_formats_are_told_apart_where_there_are_several():
    formats = {**FORMATS, HEAD: "fp16"}
    cells = section("map", plan=plan(formats=formats), gains=_with_fp16()).blocks[0].grids
    assert cells[1].rows[0][1][0].format == "fp16"
    assert isinstance(section("budget", plan=plan(formats=formats), gains=_with_fp16()).blocks[1], Bars)


def _with_fp16():
    from dataclasses import replace

    from report_case import gains

    values = gains()
    head = replace(values.groups[-1], configurations=(("bf16",), ("fp16",)))
    return {"memory": replace(values, groups=(*values.groups[:-1], head))}
