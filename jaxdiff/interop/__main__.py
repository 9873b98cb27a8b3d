"""Weights in and out:  python -m jaxdiff.interop convert SRC DST --format F;  ... export RUN FILE --format F."""

import functools
import json
import pathlib
import sys
from typing import Annotated, Any, Literal, TypeAlias

import tyro

from jaxdiff import cli
from jaxdiff import config as C
from jaxdiff.interop.convert import convert, export
from jaxdiff.interop.families import Hints

Format: TypeAlias = Annotated[
    Literal["dit", "diffit", "edm", "edm2", "adm", "lucidrains", "diffusers"], tyro.conf.arg(name="format")
]


def convert_command(
    source: pathlib.Path,
    folder: pathlib.Path,
    /,
    *,
    kind: Format,
    size: tuple[int, int] | None = None,
    schedule: Literal["linear", "scaled_linear", "cosine", "alpha_bar_sigmoid"] | None = None,
    steps: int = 1000,
    target: Literal["eps", "v", "x0"] | None = None,
    heads: int | None = None,
    head_dim: int = 64,
    image_channels: int = 0,
    part: str | None = None,
    config: pathlib.Path | None = None,
) -> None:
    """Make a run directory of a weight file (safetensors, or a zip of torch.save), for sample.py.

    Args:
        source: weight file, or a folder with a model of diffusers.
        folder: run directory to make.
        kind: whose names and layouts the file has; "dit" takes those of diffusers too.
        size: height and width of an example, where the file does not tell.
        schedule: noise schedule of the training; default as usual for such weights.
        steps: of that schedule.
        target: what the network predicts; default as usual for such weights.
        heads: number of attention heads, where it is not the published one.
        head_dim: channels of an attention head (adm, edm2).
        image_channels: input channels that are a condition, not the noisy image.
        part: which dict of a pickled file, such as ema.
        config: JSON configuration of the peer, where it does not lie beside the file.
    """
    sections: dict[str, Any] = {}
    if schedule is not None:
        sections["schedule"] = C.schedule(schedule, num_steps=steps)
    if target is not None:
        sections["parameterization"] = C.ParameterizationConfig(kind=target, sigma_data=0.5)
    told = None if config is None else json.loads(config.read_text())
    hints = Hints(size, heads, head_dim, image_channels, part, told)
    print(convert(source, folder, kind=kind, hints=hints, sections=sections))
    print(f"draw samples with  python sample.py {folder}")


def export_command(
    run: pathlib.Path, path: pathlib.Path, /, *, kind: Format, weights: Literal["ema", "raw"] = "ema"
) -> None:
    """Write the weights of a run as a state dict in safetensors.

    Args:
        run: folder that train.py or convert made.
        path: file to write.
        kind: whose names and layouts to use.
        weights: averaged, or of the last step.
    """
    print(export(run, path, kind=kind, weights=weights))


def _main(argv: list[str] | None) -> int:
    tyro.extras.subcommand_cli_from_dict(
        {"convert": convert_command, "export": export_command},
        prog="python -m jaxdiff.interop",
        description=__doc__,
        args=argv,
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_main(functools.partial(_main, None)))
