"""What the commands share: opening a run, and saying what was found."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from jaxdiff import cli
from jaxdiff.sampling import TrainedRun, load_run
from jaxdiff.typing import require

__all__ = ["Folder", "Picture", "RunDir", "open_run", "report"]

RunDir: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="RUN")]
Picture: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="OUT.png")]
Folder: TypeAlias = Annotated[Path, tyro.conf.arg(metavar="OUT_DIR")]

PICTURES = (".png", ".svg", ".pdf")


def open_run(folder: Path, picture: Path | None = None) -> TrainedRun:
    """Load a run and say what it is; a picture that cannot be written is refused before hours of work.

    Products of float32 are exact ("highest") whatever the recipe trained with: a study measures the model.
    """
    require(
        picture is None or picture.suffix in PICTURES,
        f"{picture} needs a suffix that says the format: one of {', '.join(PICTURES)}",
    )
    run = load_run(folder)
    print(cli.start(dataclasses.replace(run.config.runtime, matmul_precision="highest")), file=sys.stderr)
    print(f"{folder}: recipe {run.config.name}, step {run.step}, {run.weights} weights", file=sys.stderr)
    return run


def report(command: str, run: Path, values: Mapping[str, object], words: Iterable[str]) -> None:
    """Words for a reader on stderr, then everything as one line on stdout."""
    for line in words:
        print(line, file=sys.stderr)
    print(json.dumps({"command": command, "run": str(run)} | dict(values)))
