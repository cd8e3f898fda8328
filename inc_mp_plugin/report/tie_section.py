"""Section on what the consumers of the plan demand of it, and what that costs."""

from __future__ import annotations

import math
from collections import Counter

from inc_mp_plugin.core.plan import TieCost
from inc_mp_plugin.report.blocks import Block, Section, Table
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.text import amount


def ties(found: Found) -> Section | None:
    """Make the section on the ties of the plan, by what ties them; None for a plan without targets."""
    plan = found.plan
    if not plan.targets:
        return None
    served = plan.serving
    blocks: list[Block] = [
        f"The plan is one that {', '.join(plan.targets)} can run, with kv_cache {served.kv_cache}, "
        f"attention {served.attention} and reuse_cache {str(served.reuse_cache).lower()}."
    ]
    kinds: dict[str, list[TieCost]] = {}
    for tie in plan.ties:
        kinds.setdefault(tie.why, []).append(tie)
    rows = []
    for why, each in kinds.items():
        lowered = sum(plan.formats[tie.ops[0]] != plan.base for tie in each)
        sizes = Counter(len(tie.ops) for tie in each)
        cost = amount(math.fsum(tie.cost for tie in each), plan.unit)
        ops = ", ".join(str(size) for size in sorted(sizes))
        rows.append((why, str(len(each)), ops, str(lowered), cost))
    if rows:
        caption = "Ops that share one format, and the gain that would come on top if they did not have to."
        columns = ("what ties them", "ties", "ops in each", "of them lowered", "cost")
        blocks.append(Table(caption, columns, tuple(rows)))
    blocks += [f"{line}." for line in found.held_back]
    return Section("ties", "What the consumers tie together", tuple(blocks))
