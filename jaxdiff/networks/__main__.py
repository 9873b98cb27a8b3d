"""Print the table of published networks:  python -m jaxdiff.networks [NAME ...] [--no-flops]."""

import dataclasses
import sys

import tyro

from jaxdiff.networks.table import markdown, presets, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Parameters and forward cost of every published network, beside the published numbers."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Presets whose names contain one of these; default all."""
    flops: bool = True
    """Count the operations of one evaluation too: a few seconds for a large network."""


def main() -> int:
    """Print the table."""
    args = tyro.cli(Arguments, prog="python -m jaxdiff.networks")
    known = presets()
    chosen = {k: v for k, v in known.items() if not args.names or any(word in k for word in args.names)}
    if not chosen:
        print(f"no preset is called {' or '.join(args.names)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for line in markdown(rows(chosen, flops=args.flops)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
