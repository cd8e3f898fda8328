"""Print what was compared, as tables that line up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from task import GROUPINGS, SHARES, key


def show(results: Mapping[str, Any]) -> None:
    """Print all tables."""
    for grouping in GROUPINGS:
        part = results[grouping]
        print(f"\n== {part['groups']} groups: {grouping} ==")
        ranks = part["rank_correlation"]
        table(
            "Spearman's rank correlation of the scores",
            ["", *ranks],
            [[name, *(f"{value:.3f}" for value in row.values())] for name, row in ranks.items()],
        )
        show_plans(part["plans"])
        show_meaning(part["meaning"])
    show_foretold(results)


def show_plans(plans: Mapping[str, Any]) -> None:
    """Print the measured KL of all plans."""
    keys = [key(share) for share in SHARES]
    heads = [f"{share:.0%}" for share in SHARES]
    table(
        "Measured KL of the plans, 1e-6 nats per token, by the share of the memory that is gained",
        ["plan by", *heads],
        [[name, *(f"{1e6 * row[k]['kl']:.0f}" for k in keys)] for name, row in plans.items()],
    )
    table(
        "Over that of the plan by kl; * beyond two standard errors; > gains over 1 % more than the share",
        ["plan by", *heads],
        [
            [
                name,
                *(
                    f"{more(row[k], share)}{row[k]['over_kl']:.3f}{differs(row[k])}"
                    for k, share in zip(keys, SHARES, strict=True)
                ),
            ]
            for name, row in plans.items()
        ],
    )


def more(plan: Mapping[str, float], share: float) -> str:
    """Mark a plan that gains other memory than it was to: more, or (<) less."""
    return "<" if plan["gained"] < share - 1e-9 else ">" if plan["gained"] > share + 0.01 else ""


def differs(plan: Mapping[str, float]) -> str:
    """Mark a plan whose KL differs from that of ours by more than chance."""
    return "*" if abs(plan["over_kl"] - 1.0) > 2.0 * plan["stderr"] else " "


def show_meaning(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print predicted against measured KL."""
    table(
        "What a threshold of KL means: plans by kl, 1e-6 nats per token",
        ["memory gained", "predicted", "95 % interval", "measured", "predicted / measured"],
        [
            [
                f"{share:.0%}",
                f"{1e6 * row['predicted']:.0f}",
                " to ".join(f"{1e6 * end:.0f}" for end in row["interval"] or ()),
                f"{1e6 * row['measured']:.0f}",
                f"{row['predicted'] / row['measured']:.3f}",
            ]
            for share, row in zip(SHARES, rows, strict=True)
        ],
    )


def show_foretold(results: Mapping[str, Any]) -> None:
    """Print how well sums of scores follow measured KL over random plans, and what the scores took."""
    count = len(results["random_plans"]["sizes"])
    table(
        f"Sums of scores against measured KL, {count} random plans: a score in no unit is fitted to them",
        ["score", "log-correlation", "spread of log(score / KL)", "CPU seconds"],
        [
            [
                name,
                *foretold_cells(row),
                seconds(results["seconds"].get(name)),
            ]
            for name, row in results["foretold"].items()
        ],
    )


def foretold_cells(row: Mapping[str, float] | None) -> tuple[str, str]:
    """Format a correlation and a spread."""
    if row is None:
        return "sums below 0", ""
    return f"{row['log_correlation']:.4f}", f"{row['spread']:.3f}"


def seconds(value: Any) -> str:
    """Format CPU seconds: of one pass, or of a peer's runs for both groupings."""
    if isinstance(value, Mapping):
        return " + ".join(f"{part:.0f}" for part in value.values())
    return "" if value is None else f"{value:.0f}"


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    print(f"\n{title}")
    for row in [heads, *rows]:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
