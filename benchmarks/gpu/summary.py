"""The short table at the end of a plan."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["summary"]


def _right(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    checks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        if "verdict" in line:
            checks[line["benchmark"]].append(line)
    rows = []
    for name, found in checks.items():
        bad = [line["case"] for line in found if line["verdict"] != "ok"]
        rows.append(f"{name:<14} {len(found) - len(bad)} of {len(found)} ok{': FAIL ' + '; '.join(bad) if bad else ''}")
    return rows


def _row(line: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> str:
    same = [x for x in lines if x.get("network") == line["network"] and isinstance(x["value"], float)]
    torch = [x["value"] for x in same if x["benchmark"] == "gpu/torch" and x["batch"] == line["batch"]]
    drawn = [x["value"] for x in same if x["benchmark"] == "gpu/sample"]
    used, planned = line.get("memory_peak_GB"), line.get("memory_planned_GB")
    cells = [
        f"{line['case']:<28.28}",
        f"{line['value']:8.1f}",
        f"{line['images_per_s']:8.0f}",
        f"{line['utilisation']:5.1%}" if "utilisation" in line else "    -",
        f"{line['target']:4.0%}",
        f"{used or 0:5.1f}/{planned or 0:4.1f}",
        f"{torch[-1] / line['value']:5.2f}" if torch else "    -",
        f"{drawn[-1]:7.1f}" if drawn else "      -",
        f"{line['compile_s']:5.0f}/{line['first_step_s']:3.0f}",
    ]
    return "  ".join(cells)


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts, speeds, and what was not run.

    Args:
        lines: of results.jsonl.
    """
    rows = ["", *_right(lines)]
    measured = [line for line in lines if line["benchmark"] == "gpu/train" and isinstance(line["value"], float)]
    if measured:
        head = (
            "network, batch",
            "ms/step",
            "images/s",
            "MFU",
            "goal",
            "GB/planned",
            "x torch",
            "drawn/s",
            "cold/1st s",
        )
        widths = (28, 8, 8, 5, 4, 10, 7, 7, 10)
        rows += [
            "",
            "  ".join(f"{h:>{w}}" if i else f"{h:<{w}}" for i, (h, w) in enumerate(zip(head, widths, strict=True))),
        ]
        rows += [_row(line, lines) for line in measured]
    for line in lines:
        if line["benchmark"] == "gpu/learn" and not isinstance(line["value"], str):
            rows.append(
                f"\n{line['case']}: {line['value']} steps in {line['minutes']:.1f} min, {line['images_per_s']:.0f} "
                f"images/s, loss {line['first_loss']:.4f} -> {line['last_loss']:.4f}"
            )
    rows += [
        f"{line['benchmark']} {line['case']}: {line['value']}"
        for line in lines
        if str(line["value"]).startswith("not run")
    ]
    if lines:
        rows.append(f"on {lines[0]['count']} x {lines[0]['device']}, jax {lines[0]['jax']}, {lines[0]['date']}")
    return "\n".join(rows)
