"""How time, memory and communication of a training step grow with batch, resolution, depth and devices.

    python -m benchmarks.growth --part step --out growth.jsonl       # one device: compiled and timed
    python -m benchmarks.growth --part devices --out growth.jsonl    # 1 to 64 virtual devices: only compiled
    python -m benchmarks.growth --part large activations --out growth.jsonl      # DiT-XL/2 for docs/scaling.md

``step``: a DiT and a U-Net on random images; milliseconds (median), operations counted by XLA, memory that the compiled
step needs, compile time. ``devices``: each mesh in a process with that many virtual CPU devices and the same rows
for each device that splits rows ("weak scaling"); bytes that one device sends in a step, read from the compiled
program, rings assumed. Nothing is executed there. ``large``: the same for DiT-XL/2 on latents, its loop over the
depth compiled once. ``activations``: temporaries of its step on one device against the batch; only compiled.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import Output, parser

ROWS = 2
"""Images for each device that splits rows."""
MESHES = (
    *((n, 1, 1) for n in (1, 2, 8, 64)),
    *((1, n, 1) for n in (2, 8, 64)),
    *((1, 1, n) for n in (2, 8)),
    (8, 8, 1),
    (8, 4, 2),
)
ACTIVATIONS = tuple((rows, remat) for remat, few in ((True, 256), (False, 4)) for rows in (few, 2 * few, 4 * few))
PARTS = ("step", "devices", "large", "activations")
LARGE = ((1, 8, 1), (1, 64, 1), (8, 8, 1), (4, 8, 2))


def _config(network: Any, batch: int, size: int, *, dtype: str = "float32", channels: int = 3) -> Any:
    from benchmarks.gpu.cases import recipe

    config = recipe("edm-cifar10" if channels == 3 else "diffit-imagenet256-latent")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, shape=(size, size, channels)),
        network=network,
        loss=dataclasses.replace(config.loss, augment=0.0),
        train=dataclasses.replace(config.train, batch_size=batch),
        runtime=dataclasses.replace(config.runtime, dtype=dtype),
    )


def step_cases(smoke: bool) -> dict[str, tuple[Any, int, int]]:
    """Name -> network, batch, pixels; one thing changes at a time."""
    from jaxdiff.config import DDPMppConfig, DiTConfig

    def dit(depth: int) -> DiTConfig:
        return DiTConfig(patch=4, width=128, depth=depth, heads=4, time_scale=1000.0)

    unet = DDPMppConfig(dim=32, dim_mults=(1, 2), blocks=1, attention_levels=(1,))
    if smoke:
        return {"DiT, batch 8": (DiTConfig(patch=4, width=16, depth=1, heads=1), 8, 8)}
    cases: dict[str, tuple[Any, int, int]] = {}
    cases |= {f"DiT depth 4, 32 px, batch {b}": (dit(4), b, 32) for b in (8, 16, 32, 64)}
    cases |= {f"DiT depth 4, {s} px, batch 16": (dit(4), 16, s) for s in (16, 64)}
    cases |= {f"DiT depth {d}, 32 px, batch 16": (dit(d), 16, 32) for d in (2, 8)}
    cases |= {f"U-Net, 32 px, batch {b}": (unet, b, 32) for b in (8, 32)}
    return cases | {"U-Net, 64 px, batch 8": (unet, 8, 64)}


def step(out: Output, smoke: bool) -> None:
    """Growth on one device."""
    import jax

    from benchmarks.gpu.speed import prepare, time_groups
    from jaxdiff.networks import count_params
    from jaxdiff.run.plan import model_flops
    from jaxdiff.run.training import first_state

    for name, (network, batch, size) in step_cases(smoke).items():
        with prepare(_config(network, batch, size)) as ready:
            holder = [first_state(ready.run)]

            def call(ready: Any = ready, holder: list[Any] = holder) -> Any:
                holder[0] = ready.compiled.call(holder[0], ready.batch, ready.key)
                return holder[0].step

            seconds = time_groups(call, seconds=0.05 if smoke else 3.0)
        analysis = ready.compiled.call.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]: an executable
        flops = model_flops(ready.run)
        fields = {"GFLOP": flops / 1e9 if flops else None, "parameters": count_params(holder[0].params)}
        fields |= {"temporaries_MB": analysis.temp_size_in_bytes / 1e6, "compile_s": ready.compiled.seconds}
        fields["memory_MB"] = (ready.compiled.memory_bytes or 0) / 1e6
        out.write("growth/step", name, 1e3 * seconds, "ms per step", fields)
        jax.clear_caches()


def mesh_case(request: dict[str, Any], out: Output) -> None:
    """Compile the step on one mesh of virtual devices and read what is sent."""
    import jax

    from jaxdiff import factory, sharding
    from jaxdiff.config import DiTConfig
    from jaxdiff.data import stand_in
    from jaxdiff.networks import count_params
    from jaxdiff.runtime.collectives import collectives, total_sent
    from jaxdiff.runtime.compilation import compile_step
    from jaxdiff.training import init_state, make_train_step

    data, fsdp, tensor = request["mesh"]
    rows = request.get("rows", ROWS) * data * fsdp
    sizes = {
        "small": (4, 256, 4, 8, 16),
        "large": (2, 1152, 28, 16, 32),
        "smoke": (4, 128, 2, 2, 8),
        "tiny": (4, 32, 2, 2, 8),
    }
    patch, width, depth, heads, size = sizes[request["size"]]
    network = DiTConfig(
        patch=patch, width=width, depth=depth, heads=heads, scan=True, remat=request.get("remat", False)
    )
    config = _config(network, rows, size, dtype=request.get("dtype", "float32"), channels=4)
    mesh = sharding.make_mesh(data, fsdp, tensor)
    model = factory.model(config, stand_in((size, size, 4), num_classes=config.data.classes).spec)
    loss, (tx, _) = factory.loss(config, model), factory.optimizer(config)
    average, _ = factory.averages(config)
    batch = {"x": jax.ShapeDtypeStruct((rows, size, size, 4), "float32")}
    batch |= {"cond": {"label": jax.ShapeDtypeStruct((rows,), "int32")}}
    state = jax.eval_shape(
        lambda: init_state(factory.init_params(model, jax.random.key(0)), tx, loss=loss, batch=batch)
    )
    placement = sharding.state_sharding(state, mesh)
    function = make_train_step(loss, tx, ema_decay=average, state_sharding=placement)

    class Traced:
        """The step, traced for the mesh."""

        lower = staticmethod(sharding.on_mesh(function.lower, mesh))  # pyright: ignore[reportFunctionMemberAccess]

    arguments = sharding.place(state, placement), sharding.place(batch, sharding.batch_sharding(mesh))
    compiled = compile_step(Traced, *arguments, jax.random.key(0))
    analysis = compiled.call.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]: an executable
    found = collectives(compiled.call)
    kinds: dict[str, float] = {}
    for one in found:
        kinds[f"{one.kind}_MB"] = kinds.get(f"{one.kind}_MB", 0.0) + one.sent / 1e6
    parameters = count_params(state.params)
    fields = {"devices": math.prod(mesh.devices.shape), "rows": rows, "parameters": parameters}
    fields |= {name: kinds.get(name) for name in ("all-gather_MB", "reduce-scatter_MB", "all-reduce_MB")}
    fields["other_MB"] = sum(v for k, v in kinds.items() if k not in fields)
    fields["sent_per_parameter_byte"] = total_sent(found) / (4 * parameters)
    fields |= {"state_MB": analysis.alias_size_in_bytes / 1e6, "temporaries_MB": analysis.temp_size_in_bytes / 1e6}
    fields |= {"compile_s": compiled.seconds}
    if request["benchmark"] == "growth/activations":
        name = f"{rows} rows, recomputation {'on' if request['remat'] else 'off'}, {request['dtype']}"
        fields = {name: fields[name] for name in ("rows", "state_MB", "compile_s")}
        out.write(request["benchmark"], name, analysis.temp_size_in_bytes / 1e6, "MB of temporaries", fields)
        return
    name = f"{data} x {fsdp} x {tensor}"
    out.write(request["benchmark"], name, total_sent(found) / 1e6, "MB sent per device and step", fields)


def devices(out: Output, requests: Sequence[dict[str, Any]]) -> None:
    """Each mesh in a process of its own, whose number of devices is fixed at its start."""
    root = pathlib.Path(__file__).parent.parent
    # Nothing is executed: machine code need not be fast, only the partitioned program matters.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    for request in requests:
        mesh = request["mesh"]
        flags = os.environ.get("XLA_FLAGS", "") + f" {quick} --xla_force_host_platform_device_count={math.prod(mesh)}"
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        text = json.dumps(request | {"out": str(out.path) if out.path else None})
        command = [sys.executable, "-m", "benchmarks.growth", "--child", text]
        try:
            done = subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, timeout=900)
            words = done.stderr.strip().splitlines() or [""]
            failed = f"exit code {done.returncode}: {words[-1][:300]}" if done.returncode else ""
            print(done.stdout, end="", flush=True)
        except subprocess.TimeoutExpired:
            failed = "it took more than 15 minutes"
        if failed:
            out.write(request["benchmark"], " x ".join(map(str, mesh)), f"not run: {failed}", "")


def requests(part: str, smoke: bool) -> list[dict[str, Any]]:
    """What the processes of a part are asked."""
    if part == "devices":
        meshes, size = (((1, 2, 1),), "smoke") if smoke else (MESHES, "small")
        return [{"mesh": mesh, "size": size, "benchmark": "growth/devices"} for mesh in meshes]
    if part == "large":
        return [{"mesh": mesh, "size": "large", "remat": True, "benchmark": "growth/large"} for mesh in LARGE]
    same = {"mesh": (1, 1, 1), "size": "large", "dtype": "bfloat16", "benchmark": "growth/activations"}
    return [same | {"rows": rows, "remat": remat} for rows, remat in ACTIVATIONS]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts that were asked for."""
    arguments = parser(
        __doc__,
        [
            ("--part", {"nargs": "+", "choices": PARTS, "default": ("step", "devices")}),
            ("--child", {"help": "one mesh, by this script itself"}),
        ],
    )
    args = arguments.parse_args(argv)
    if args.child:
        request = json.loads(args.child)
        mesh_case(request, Output(request["out"]))
        return 0
    out = Output(pathlib.Path(args.out).resolve() if args.out else None)
    for part in args.part:
        if part == "step":
            step(out, args.smoke)
        else:
            devices(out, requests(part, args.smoke))
    return 0


if __name__ == "__main__":
    sys.exit(main())
