"""`inc-mp demo`: the shipped model, tuned."""

from __future__ import annotations

from inc_mp_plugin.cli.app import Overrides

_RECIPE = "tiny-llama"


def demo(overrides: Overrides = None) -> None:
    """Run every stage on the small Llama that ships, into runs/tiny-llama; two minutes on two cores."""
    from inc_mp_plugin.cli.tune import tune
    from inc_mp_plugin.pipeline.shipped import recipe_path

    tune(recipe_path(_RECIPE), overrides)
