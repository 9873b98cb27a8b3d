"""What the factor gamma on the noise of DDPM does: too little makes samples alike, too much leaves noise in them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jaxdiff import data, factory, grids, metrics, samplers, sharding
from jaxdiff.experiments.common import denoiser_of, jit_options, labels_in_turn, real_examples, replicated
from jaxdiff.sampling import TrainedRun
from jaxdiff.typing import Cond, Denoiser, Keys, Params, require

__all__ = ["KnobSetting", "draw_with_knobs", "knob_settings", "study_knob"]

MOST_REAL = 2000


class KnobSetting(NamedTuple):
    """One setting: its name, gamma where it is constant (else None), and the factor of each step (n,)."""

    name: str
    gamma: float | None
    factors: Float[Array, " n"]


class KnobStudy(NamedTuple):
    """Numbers of the study; samples of each setting, and real images, in model space."""

    values: dict[str, Any]
    samples: list[Float32[np.ndarray, "num h w c"]]
    real: Float32[np.ndarray, "n h w c"]


def knob_settings(gammas: Sequence[float], steps: int) -> list[KnobSetting]:
    """Constant knobs, and the two published ones that change with time.

    Args:
        gammas: factors of the standard deviation of the noise, 0 or more, all different.
        steps: steps of the sampler.

    Returns:
        The settings, the constant ones by increasing gamma.

    Raises:
        ValueError: no factor, a negative one or one given twice.
    """
    require(len(gammas) > 0 and len(set(gammas)) == len(gammas), f"--gammas {gammas}: give different numbers")
    constant = [KnobSetting(f"{g:g}", g, samplers.variance_knob("constant", steps, value=g)) for g in sorted(gammas)]
    named = [KnobSetting(kind, None, samplers.variance_knob(kind, steps)) for kind in ("exponential", "sigmoid")]
    return constant + named


def draw_with_knobs(
    denoiser_from: Callable[[Params], Denoiser],
    params: Params,
    keys: Keys,
    sigmas: Float[Array, " sigmas"],
    settings: Sequence[KnobSetting],
    *,
    shape: tuple[int, ...],
    cond: Cond = None,
    variance: str = "lower",
    options: dict[str, str | bool] | None = None,
) -> list[Float32[np.ndarray, "num ..."]]:
    """Draw the same samples, by their keys, under every setting; the factors are an argument of one program.

    Args:
        denoiser_from: makes the denoiser of the parameters.
        params: the parameters.
        keys: one for each sample.
        sigmas: noise levels, shape (n + 1,).
        settings: from `knob_settings`.
        shape: of one sample.
        cond: conditioning inputs.
        variance: "lower" or "upper", see `jaxdiff.samplers.ddpm`.
        options: compiler options.

    Returns:
        Samples in model space, one array for each setting.
    """

    @functools.partial(jax.jit, compiler_options=options or {})
    def draw(params: Params, keys: Array, sigmas: Array, cond: Cond, factors: Array) -> Array:
        x = samplers.initial_noise(keys, shape, sigmas[0])
        denoiser = denoiser_from(params)
        return samplers.ddpm(denoiser, x, sigmas, keys, cond=cond, variance=variance, noise_scale=factors)

    return [np.asarray(draw(params, keys, sigmas, cond, setting.factors)) for setting in settings]


def study_knob(
    run: TrainedRun, settings: Sequence[KnobSetting], *, num: int = 32, seed: int = 0, source: data.Source | None = None
) -> KnobStudy:
    """Draw with DDPM under every setting and measure diversity and high-frequency energy.

    The steps are uniform in the time of the run's schedule, from its end on; every setting starts from the
    same noise. Read both numbers against those of real data: few different samples have a low diversity,
    noise left in them raises the high-frequency energy.

    Args:
        run: trained on images with Gaussian noise.
        settings: from `knob_settings`.
        num: samples of each setting, at least 2.
        seed: sample i depends on this and i alone.
        source: real images; None opens those that the run was trained on.

    Returns:
        The study; "settings" holds one row for each setting.

    Raises:
        ValueError: a run on other data or noise, or fewer than two samples.
    """
    spec, config = run.model.spec, run.config
    require(spec.kind == "image", f"the run {config.name!r} was trained on {spec.kind} data: use one on images")
    require(
        config.loss.law == "normal",
        f"DDPM needs Gaussian noise; {config.name!r} has loss.noise uniform",
    )
    require(num >= 2, f"--num is {num}: diversity needs at least 2 samples")
    run = replicated(run)
    path = factory.schedule(config.schedule)
    place = sharding.batch_sharding(sharding.make_mesh()) if num % jax.device_count() == 0 else None
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num))
    samples = draw_with_knobs(
        functools.partial(denoiser_of, run),
        run.params,
        keys if place is None else jax.device_put(keys, place),
        grids.uniform_time(path, len(settings[0].factors), spacing="trailing"),
        settings,
        shape=spec.shape,
        cond=factory.conditioning(run.model, labels_in_turn(run, num), num),
        variance=config.sampler.own().get("variance", "lower"),
        options=jit_options(run),
    )
    opened = factory.source(config.data, seed=config.seed) if source is None else source
    real = run.normalizer.encode(real_examples(opened, MOST_REAL))
    rows = [{"knob": s.name, "gamma": s.gamma} | _measure(x) for s, x in zip(settings, samples, strict=True)]
    steps = len(settings[0].factors)
    values = {"steps": steps, "num": num, "seed": seed, "settings": rows, "real": {"count": len(real)} | _measure(real)}
    return KnobStudy(values, samples, real)


def _measure(images: Float32[np.ndarray, "n h w c"]) -> dict[str, float]:
    """Both numbers, in model space."""
    return {
        "diversity": metrics.sample_diversity(images),
        "high_frequency_energy": metrics.high_frequency_energy(images),
    }
