"""The commands that make a folder again, of a plan for other consumers than the recipe's."""

import shlex

from report_case import artefacts

from inc_mp_plugin.report.reproduce_sections import commands


def test_the_command_of_a_plan_for_other_consumers():
    serving = {"kv_cache": "fp8", "attention": "eager", "reuse_cache": True}
    settings = {"plan": {"objective": "memory", "tau": 0.1, "targets": ["vllm-gaudi"], "serving": serving}}
    recipe = {"objective": "memory", "tau": 0.1, "attention": "eager", "targets": ["cpu-qdq"]}
    line = list(commands(artefacts(recipe=recipe, depends_on=settings)))[1]
    assert shlex.split(line)[3:] == ['targets=["vllm-gaudi"]', "kv_cache=fp8", "reuse_cache=true"]
