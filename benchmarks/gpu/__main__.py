"""jaxdiff on one GPU: is it right, how fast is it, does it learn; one call, one JSON line per measurement.

    python -m benchmarks.gpu --plan short --minutes 9 --data cifar10.npz --folder DIR     # all of it, in order of value
    python -m benchmarks.gpu --plan short --smoke --folder DIR                            # the rehearsal, on a CPU
    python -m benchmarks.gpu --plan levers --networks dit-xl/2 --minutes 9 --folder DIR   # ways to compute the step

Run from the repository, with jaxdiff's dependencies installed; no network is needed. DIR gets results.jsonl (lines as
they are measured), children.log, and of the short plan cifar10_samples.png, cifar10_loss.png, kernels.txt and
trace.json.gz of the slowest network: less than 8 files. Tables: ``python -m benchmarks.report DIR/results.jsonl``.

start   every module imported, one step of toy2d
right   samplers, networks, losses, attention and resuming, against the stored numbers of a CPU
speed   the four networks in bfloat16: step, utilisation, memory, sampling; the first two beside compiled PyTorch
learn   EDM on the images of --data in the time that is left: curve of the loss, grid of samples

Exit codes: 0 done (what there was no time for is a line "not run"), 1 something failed.
"""

import pathlib
import sys
from collections.abc import Sequence

from benchmarks.common import parser
from benchmarks.gpu.cases import NETWORKS
from benchmarks.gpu.plan import PLANS, Plan, Session
from benchmarks.gpu.summary import summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run a plan and print its table."""
    arguments = parser(
        __doc__,
        [
            ("--plan", {"choices": tuple(PLANS), "default": "short"}),
            ("--minutes", {"type": float, "default": 9.0, "help": "for all stages together"}),
            ("--folder", {"type": pathlib.Path, "required": True, "help": "where results and pictures go"}),
            ("--data", {"default": "", "help": "npz of uint8 images (N, 32, 32, 3) and labels"}),
            ("--networks", {"nargs": "+", "choices": tuple(NETWORKS), "default": tuple(NETWORKS)}),
            ("--batch", {"type": int, "help": "in place of the largest that fits"}),
            ("--peers", {"default": sys.executable, "help": "python of an environment with torch"}),
            ("--cache", {"default": "", "help": "folder of compiled programs; default an empty one"}),
        ],
    )
    args = arguments.parse_args(argv)
    session = Session(
        folder=args.folder,
        minutes=args.minutes,
        smoke=args.smoke,
        data=args.data,
        networks=args.networks,
        batch=args.batch,
        peers=args.peers,
        cache=args.cache,
    )
    Plan(args.plan, session).run()
    print(summary(session.lines()))
    return int(session.failed)


if __name__ == "__main__":
    sys.exit(main())
