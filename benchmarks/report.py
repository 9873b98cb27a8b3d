"""Write measurements into RESULTS.md:  python -m benchmarks.report LINES.jsonl ... [--into benchmarks/RESULTS.md].

Each value of the field "benchmark" is a section: what stands between ``<!-- NAME -->`` and the next ``<!-- end -->`` is
replaced by one table per machine, with device, versions and date. A section that is not there yet is added
at the end. Of several lines of the same case on the same machine the last one counts.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.common import KEYS

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")
END = "<!-- end -->"
MACHINE = ("device", "platform", "count", "threads", "python", "jax", "jaxlib", "flax", "torch")


def read(paths: Iterable[pathlib.Path]) -> dict[str, list[dict[str, Any]]]:
    """Lines of all files by benchmark.

    Raises:
        ValueError: a line that is no measurement.
    """
    sections: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for number, text in enumerate(path.read_text().splitlines(), 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {text[:60]!r}") from error
            missing = [key for key in KEYS if key not in line]
            if missing:
                raise ValueError(f"{path}, line {number} has no field {missing[0]!r}: it is no measurement")
            sections.setdefault(line["benchmark"], []).append(line)
    return sections


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if abs(value) >= 1e15:
            return f"{value:.4g}"
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def table(lines: list[dict[str, Any]]) -> str:
    """One table of the lines of one machine; fields that are equal in all lines stand above it."""
    latest = {(line["case"], line["unit"]): line for line in lines}
    lines = list(latest.values())
    fields = list(dict.fromkeys(key for line in lines for key in line if key not in (*KEYS, *MACHINE, "date")))
    common = {
        key: lines[0].get(key)
        for key in fields
        if len(lines) > 1 and all(key in x and x[key] == lines[0].get(key) for x in lines)
    }
    columns = [key for key in fields if key not in common]
    units = {line["unit"] for line in lines}
    unit = units.pop() if len(units) == 1 else None
    head = ["case", unit or "value", *(() if unit else ("unit",)), *columns]
    rows = []
    for line in lines:
        cells = [line["case"], line["value"], *(() if unit else (line["unit"],)), *(line.get(key) for key in columns)]
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    note = "; ".join(f"{key} {_cell(value)}" for key, value in common.items())
    parts = [f"Same in all rows: {note}.", ""] if note else []
    return "\n".join([*parts, f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def section(lines: list[dict[str, Any]]) -> str:
    """Tables of one benchmark, one for each machine and set of versions."""
    machines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        # Virtual devices are what such a line is about, not the machine.
        same = line | {"count": "virtual"} if "devices" in line else line
        machines.setdefault(tuple(str(same.get(key)) for key in MACHINE), []).append(same)
    texts = []
    for group in machines.values():
        one = group[0]
        dates = sorted({line["date"][:10] for line in group})
        versions = ", ".join(
            f"{key} {one[key]}" for key in ("python", "jax", "jaxlib", "flax", "torch") if one.get(key)
        )
        span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        count = f"{one['count']} x" if one["count"] != "virtual" else "virtual devices on"
        head = f"{count} {one['device']}, {one['threads']} CPU threads; {versions}; {span}."
        texts.append(f"{head}\n\n{table(group)}")
    return "\n\n".join(texts)


def replace(text: str, sections: Mapping[str, str]) -> str:
    """The document with the named sections replaced, or added at the end.

    Raises:
        ValueError: a section that begins twice, or does not end.
    """
    for name, body in sections.items():
        start = f"<!-- {name} -->"
        if text.count(start) > 1:
            raise ValueError(f"the marker {start} stands there {text.count(start)} times: leave one")
        if start not in text:
            text = f"{text.rstrip()}\n\n## {name}\n\n{start}\n{END}\n"
        before, rest = text.split(start)
        if END not in rest or re.search(r"<!-- (?!end)", rest.split(END, 1)[0]):
            raise ValueError(f"the section after {start} does not end: put {END} on a line of its own")
        text = f"{before}{start}\n\n{body}\n\n{END}{rest.split(END, 1)[1]}"
    return text


def main() -> int:
    """Read, replace, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("lines", nargs="+", type=pathlib.Path)
    arguments.add_argument("--into", type=pathlib.Path, default=RESULTS)
    args = arguments.parse_args()
    try:
        sections = {name: section(lines) for name, lines in read(args.lines).items()}
        args.into.write_text(replace(args.into.read_text(), sections))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.into}: {', '.join(sections)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
