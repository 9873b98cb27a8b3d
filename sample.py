"""Draw samples from a trained run:  python sample.py RUN_DIR [--num N --label L --guidance W --steps N ...].

Everything is rebuilt from the checkpoint. Sample i depends on the seed and i alone. An interrupted command
continues where it stopped. Exit codes: 0 done, 2 wrong arguments or no usable checkpoint, 130/143 signals.

--sampler, --grid and --guidance are short for --sampler.kind, --grid.kind and --guidance.scale; after the run directory
every option of the chosen kind can follow: --sampler.eta 0.5, --guidance.kind cfg_rescale --guidance.phi 0.5.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

import tyro

from jaxdiff import cli
from jaxdiff.config import (
    Config,
    GridConfig,
    GuidanceConfig,
    SampleConfig,
    SamplerConfig,
    choose,
    grid,
    guidance,
    kinds_text,
    sampler,
)
from jaxdiff.sampling import Request, labels_asked, load_run, parse_part, read_inputs, run_request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Draw samples from a trained run."""

    run_dir: tyro.conf.Positional[pathlib.Path]
    """Folder that train.py wrote."""
    num: int | None = None
    """How many samples; default by the recipe."""
    label: str = ""
    """A class 0..K-1, `all` (default: they take turns), `none`, or for context networks a mix such as 3:0.5,8:0.5."""
    inputs: pathlib.Path | None = None
    """An npz file with the further conditioning of the samples, arrays cond_NAME as in training, rows taken in turn."""
    guidance: float | None = None
    """0 is unconditional, 1 conditional, larger values push towards the label; default by the recipe."""
    sampler: str | None = None
    """Sampler; default by the recipe."""
    steps: int | None = None
    """Steps of the sampler; default by the recipe."""
    grid: str | None = None
    """Noise levels of the steps; default by the recipe."""
    eta: float | None = None
    """Noise of samplers that take it: 0 is deterministic, 1 the reverse SDE; default by the recipe."""
    order: int | None = None
    """Order of samplers that have several; default by the recipe."""
    brownian: bool = False
    """Draw the noise along one Brownian path: more steps then refine the same image."""
    seed: int = 0
    """Sample i depends on this and i alone."""
    out: pathlib.Path | None = None
    """Folder for the samples; default RUN_DIR/samples."""
    format: Literal["auto", "png", "npz", "csv", "wav", "shards", "array_record"] = "auto"
    """auto: PNG for images, CSV for vectors, WAV for audio. For many samples: shards (npz files) or array_record."""
    shard_size: int = 1000
    """Samples of one file of shards or array_record; also what a process takes at a time."""
    part: str = ""
    """I/N: draw part I (from 0) of N and nothing else, so that N processes or machines share the work."""
    trajectory: bool = False
    """Also write the states of the first samples: trajectory.npz and, for images, reverse.gif and reverse.png."""
    batch_size: int | None = None
    """Samples drawn at once, over all devices; changes no sample."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged weights, or those of the last step."""
    checkpoint: int | None = None
    """Step of the checkpoint; default the newest good one."""
    matmul_precision: Literal["default", "high", "highest"] | None = None
    """Precision of float32 products on GPU and TPU; default as in training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """The sections of a configuration that say how samples are drawn."""

    sampler: SamplerConfig = dataclasses.field(default_factory=lambda: sampler("dpmpp_2m"))
    grid: GridConfig = dataclasses.field(default_factory=lambda: grid("karras"))
    guidance: GuidanceConfig = dataclasses.field(default_factory=lambda: guidance("classifier_free"))
    sample: SampleConfig = SampleConfig()


SHORT = {"guidance": "guidance.scale", "sampler": "sampler.kind", "grid": "grid.kind", "eta": "sampler.eta"}
SHORT |= {"order": "sampler.order"}
"""Arguments that are short for a field of a section that has kinds."""


def drawing(default: Drawing, words: Sequence[str]) -> Drawing:
    """Change what the words of the command line name, kinds first."""
    chosen = choose(default, words)
    description = f"How samples are drawn; kinds:\n{kinds_text(chosen)}"
    config = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(
        Drawing, prog="sample.py RUN_DIR", args=words, default=chosen, description=description, config=config
    )


def updated(config: Config, args: Arguments, rest: Sequence[str]) -> Config:
    """The configuration with what the command line overrides."""
    names = ("num", "steps", "batch_size")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    given |= {"brownian": True} if args.brownian else {}
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, **given))
    short = [(f"--{field}", str(value)) for name, field in SHORT.items() if (value := getattr(args, name)) is not None]
    words = [word for pair in short for word in pair] + list(rest)
    changed = drawing(Drawing(**{f.name: getattr(config, f.name) for f in dataclasses.fields(Drawing)}), words)
    sections = {field.name: getattr(changed, field.name) for field in dataclasses.fields(Drawing)}
    precision = args.matmul_precision or config.runtime.matmul_precision
    runtime = dataclasses.replace(config.runtime, matmul_precision=precision)
    return dataclasses.replace(config, runtime=runtime, **sections)


def parse(words: Sequence[str]) -> tuple[Arguments, list[str]]:
    """Read the command line: the arguments, and the words about sections."""
    try:
        return tyro.cli(Arguments, prog="sample.py", description=__doc__, args=words, return_unknown_args=True)
    except SystemExit:
        if {"-h", "--help"} & set(words):
            drawing(Drawing(), [word for word in words if word.startswith("-")])
        raise


def main() -> int:
    """Load the run, draw, write."""
    args, rest = parse(sys.argv[1:])
    run = load_run(args.run_dir, step=args.checkpoint, weights=args.weights, spread=True)
    run = run._replace(config=updated(run.config, args, rest))
    print(cli.start(run.config.runtime), file=sys.stderr)
    print(f"{args.run_dir}: recipe {run.config.name}, step {run.step}, {args.weights} weights", file=sys.stderr)
    request = Request(
        labels=labels_asked(run, args.label),
        seed=args.seed,
        folder=args.out or args.run_dir / "samples",
        format=args.format,
        trajectory=args.trajectory,
        inputs=read_inputs(args.inputs, run.model),
        shard_size=args.shard_size,
        part=parse_part(args.part),
    )
    for line in run_request(run, request):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_main(main))
