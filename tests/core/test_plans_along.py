"""Plans of a curve in few numbers: every plan comes back."""

from hypothesis import given
from hypothesis import strategies as st

from inc_mp_plugin.core.plans_along import PlansAlong

FORMATS = ["bf16", "fp8_e4m3", "fp8_e5m2"]
PLANS = st.lists(st.fixed_dictionaries({op: st.sampled_from(FORMATS) for op in "abcd"}), max_size=8)


@given(PLANS)
def test_every_plan_comes_back(plans):
    along = PlansAlong.of(plans, "bf16")
    for point, plan in enumerate(plans):
        assert along.lowered(point) == {op: name for op, name in plan.items() if name != "bf16"}


@given(PLANS)
def test_only_changes_are_kept(plans):
    changes = PlansAlong.of([*plans, *plans[-1:]], "bf16").changes
    assert changes == PlansAlong.of(plans, "bf16").changes
    assert all(
        first != second
        for numbers in changes.values()
        for first, second in zip(numbers[1::2], numbers[3::2], strict=False)
    )
