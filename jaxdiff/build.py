"""From a configuration to objects: the single place that maps names to functions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxdiff import config as C
from jaxdiff import (
    data,
    denoisers,
    grids,
    guidance,
    losses,
    networks,
    noise_levels,
    parameterizations,
    samplers,
)
from jaxdiff import schedules as S
from jaxdiff.training import make_optimizer
from jaxdiff.typing import Cond, Denoiser, Loss, Network, Parameterization, Params, Sampler, Schedule, require

__all__ = [
    "Model",
    "conv_network",
    "draw",
    "grid",
    "init_params",
    "labels_to_cond",
    "loss",
    "model",
    "optimizer",
    "param_shapes",
    "resolve",
    "sampler",
    "schedule",
    "source",
]


class Model(NamedTuple):
    """A network bound to the data it is for.

    Attributes:
        module: the linen module.
        network: the pure function.
        parameterization: what it predicts.
        spec: what one example is.
        condition: "none", "label" or "context".
        null_cond: null value of every conditioning input.
    """

    module: nn.Module
    network: Network
    parameterization: Parameterization
    spec: data.DataSpec
    condition: str
    null_cond: Mapping[str, Any]


def source(config: C.DataConfig, *, seed: int = 0) -> data.Source:
    """Open the examples that the configuration names.

    Args:
        config: section ``data``.
        seed: seed of synthetic data.

    Returns:
        A random-access source.

    Raises:
        ValueError: nothing there, or nothing readable.
    """
    require(
        bool(config.path) or config.kind not in ("npz", "folder", "csv", "audio"),
        f"data.kind {config.kind!r} reads a file or folder: give --data.path PATH",
    )
    label = config.label or "auto"
    match config.kind:
        case "digits":
            require(
                config.split in ("train", "test", "all"),
                f"data.split is {config.split!r}: digits has train, test and all",
            )
            return data.digits(split=config.split)  # pyright: ignore[reportArgumentType] (checked above)
        case "npz":
            return data.npz(config.path, split=config.split)
        case "folder":
            return data.folder(
                config.path,
                image_size=config.size,
                channels=config.channels,
                background=config.background,
                label=label,
            )
        case "audio":
            return data.audio(config.path, length=config.length, label=label)
        case "csv":
            return data.csv(config.path, label_column=config.label)
        case "tfds":
            return data.tfds_source(config.name, config.split, data_dir=config.path or None, image_size=config.size)
        case "toy2d":
            return data.toy2d(config.name, config.num, seed=seed)
        case "vectors":
            return data.gaussian_vectors(config.num, config.length, mean=config.mean, std=config.std, seed=seed)


def schedule(config: C.ScheduleConfig) -> Schedule:
    """Make the noise schedule; fields that its kind does not have are refused."""
    kinds = {
        "linear": S.Linear,
        "scaled_linear": S.ScaledLinear,
        "quadratic": S.Quadratic,
        "cosine": S.Cosine,
        "beta_sigmoid": S.BetaSigmoid,
        "alpha_bar_sigmoid": S.AlphaBarSigmoid,
        "laplace": S.Laplace,
        "vp": S.VP,
        "sub_vp": S.SubVP,
        "ve": S.VE,
        "edm": S.EDM,
        "rectified_flow": S.RectifiedFlow,
    }
    made = _make(kinds[config.kind], config, "schedule", leave=("zero_terminal_snr",))
    if not config.zero_terminal_snr:
        return made
    require(
        isinstance(made, S.DiscreteSchedule),
        f"schedule.zero_terminal_snr needs a schedule of steps, not {config.kind!r}: use linear or cosine",
    )
    return S.ZeroTerminalSNR(base=made)


def _make(cls: type, config: Any, section: str, *, leave: tuple[str, ...] = (), **fixed: Any) -> Any:
    """Call ``cls`` with the fields of ``config`` that are set; refuse those that it does not take."""
    known = {field.name for field in dataclasses.fields(cls)}
    given = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in ("kind", *leave) and (value := getattr(config, field.name)) is not None
    }
    extra = sorted(set(given) - known)
    require(
        not extra,
        f"{section}.{extra[0] if extra else ''} does not apply to {section}.kind {config.kind!r}, "
        f"which takes {', '.join(sorted(known - set(fixed))) or 'no options'}",
    )
    return cls(**given, **fixed)


def _parameterization(config: C.Config) -> Parameterization:
    P = parameterizations
    path = schedule(config.schedule)
    match config.parameterization.kind:
        case "edm":
            sigma_data = config.parameterization.sigma_data
            require(sigma_data != "auto", "parameterization.sigma_data is 'auto': resolve the configuration first")
            return P.EDM(sigma_data=float(sigma_data))
        case "vp":
            return P.VPPrecond()
        case "ve":
            return P.VEPrecond()
        case "eps":
            return P.Eps(schedule=path)
        case "x0":
            return P.X0(schedule=path)
        case "v":
            return P.V(schedule=path)
        case "flow":
            return P.Flow(schedule=path)
        case "score":
            return P.Score(schedule=path)


def _noise_levels(config: C.Config) -> noise_levels.NoiseLevels:
    section, path = config.noise_levels, schedule(config.schedule)
    options = functools.partial(_make, config=section, section="noise_levels", leave=("low_discrepancy",))
    match section.kind:
        case "uniform_time":
            made = options(noise_levels.UniformTime, schedule=path)
        case "log_normal":
            made = options(noise_levels.LogNormal)
        case "log_uniform":
            made = options(noise_levels.LogUniform)
        case "logit_normal":
            made = options(noise_levels.LogitNormal, schedule=path)
    return noise_levels.LowDiscrepancy(made) if section.low_discrepancy else made


def _weighting(config: C.Config) -> losses.Weighting | None:
    gamma = config.loss.gamma
    sigma_data = config.parameterization.sigma_data
    scale = 0.5 if sigma_data == "auto" else float(sigma_data)
    match config.loss.weighting:
        case "simple":
            return None
        case "uniform":
            return losses.Uniform()
        case "edm":
            return losses.EDMWeighting(scale)
        case "snr":
            return losses.SNRWeighting()
        case "min_snr":
            return losses.MinSNR() if gamma is None else losses.MinSNR(gamma)
        case "soft_min_snr":
            return losses.SoftMinSNR(scale)
        case "p2":
            return losses.P2Weighting() if gamma is None else losses.P2Weighting(gamma)


def _module(config: C.Config, spec: data.DataSpec) -> nn.Module:
    section, dtype = config.network, jnp.dtype(config.runtime.dtype)
    fields = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.name != "kind"}
    classes = spec.num_classes if config.data.condition == "label" else 0
    image = isinstance(section, C.ToyUNetConfig | C.DDPMUNetConfig | C.ContextUnetConfig)
    require(
        image == (spec.kind == "image"),
        f"network.kind {section.kind!r} is for {'images' if image else 'vectors'}, "
        f"but the data are of kind {spec.kind!r} and shape {spec.shape}",
    )
    wanted = {"label": (C.ContextUnetConfig, C.ToyUNetConfig), "context": (C.ToyUNetConfig, C.DDPMUNetConfig)}
    require(
        not isinstance(section, wanted.get(config.data.condition, ())),
        f"network.kind {section.kind!r} takes no data.condition {config.data.condition!r}",
    )
    channels = spec.shape[-1]
    match section:
        case C.MLPConfig():
            return networks.MLP(num_classes=classes, dtype=dtype, **fields)
        case C.VectorTransformerConfig():
            return networks.VectorTransformer(num_classes=classes, dtype=dtype, **fields)
        case C.ToyUNetConfig():
            return networks.ToyUNet(channels=channels, dtype=dtype)
        case C.DDPMUNetConfig():
            return networks.DDPMUNet(channels=channels, num_classes=classes, dtype=dtype, **fields)
        case C.ContextUnetConfig():
            context = spec.num_classes if config.data.condition == "context" else 0
            height, width = spec.shape[:2]
            return networks.ContextUnet(
                channels=channels, n_cfeat=context, height=height, width=width, dtype=dtype, **fields
            )


def conv_network(config: C.NetworkConfig) -> bool:
    """Whether the network consists of convolutions (else of matrix products)."""
    return isinstance(config, C.ToyUNetConfig | C.DDPMUNetConfig | C.ContextUnetConfig)


def resolve(config: C.Config, examples: data.Source, normalizer: data.Normalizer) -> C.Config:
    """Replace what is measured from the data: ``sigma_data: auto``.

    Returns:
        A configuration that sampling can rebuild everything from.
    """
    if config.parameterization.sigma_data != "auto":
        return config
    std = round(data.measured_std(examples, normalizer), 4)
    require(
        std > 0,
        "the data are constant (standard deviation 0): nothing to learn; set parameterization.sigma_data",
    )
    section = dataclasses.replace(config.parameterization, sigma_data=std)
    return dataclasses.replace(config, parameterization=section)


def model(config: C.Config, spec: data.DataSpec) -> Model:
    """Build the network for data of this kind.

    Raises:
        ValueError: network and data do not fit, naming both.
    """
    condition = config.data.condition
    require(
        condition == "none" or spec.num_classes > 0,
        f"data.condition is {condition!r} but the data have no labels: use --data.condition none",
    )
    null: dict[str, Any] = {}
    if condition == "label":
        null = {"label": np.int32(spec.num_classes)}
    elif condition == "context":
        null = {"context": np.zeros(spec.num_classes, np.float32)}
    module = _module(config, spec)
    return Model(module, networks.as_network(module), _parameterization(config), spec, condition, null)


def _example(built: Model) -> tuple[jax.Array, jax.Array, Cond]:
    cond = {name: jnp.asarray(value)[None] for name, value in built.null_cond.items()}
    return jnp.zeros((1, *built.spec.shape)), jnp.zeros((1,)), cond or None


def init_params(built: Model, key: jax.Array) -> Params:
    """Draw initial parameters."""
    x, noise_cond, cond = _example(built)
    return networks.init_params(built.module, key, x, noise_cond, cond)


def param_shapes(built: Model) -> Params:
    """Shapes of the parameters, without computing them."""
    return jax.eval_shape(lambda: init_params(built, jax.random.key(0)))


def loss(config: C.Config, built: Model) -> Loss:
    """Build the training loss."""
    return losses.denoising_loss(
        built.network,
        parameterization=built.parameterization,
        noise_levels=_noise_levels(config),
        weighting=_weighting(config),
        noise=config.loss.noise,
        cond_dropout=config.loss.cond_dropout,
        null_cond=built.null_cond,
    )


def optimizer(config: C.Config) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Build the optimizer and its learning-rate schedule (a function of the number of updates)."""
    section = config.optim
    updates = max(config.train.steps // section.accumulate, 1)
    return make_optimizer(
        peak_lr=section.lr,
        total_steps=updates if section.decay != "constant" else None,
        warmup_steps=min(section.warmup, updates - 1),
        schedule=section.decay,
        b1=section.b1,
        b2=section.b2,
        weight_decay=section.weight_decay,
        clip_norm=section.clip,
        accumulate=section.accumulate,
    )


def sampler(config: C.SampleConfig) -> Sampler:
    """Build the sampler with the options of the configuration."""
    match config.sampler:
        case "euler":
            return samplers.euler
        case "heun":
            return functools.partial(samplers.heun, ends_at_zero=True)
        case "stochastic_heun":
            return functools.partial(samplers.stochastic_heun, s_churn=config.s_churn, ends_at_zero=True)
        case "dpmpp_2m":
            return samplers.dpmpp_2m
        case "ddim":
            return functools.partial(samplers.ddim, eta=config.eta)
        case "playground":
            return samplers.playground
        case "ddpm":
            knob = samplers.variance_knob(config.variance_knob, config.steps)
            return functools.partial(samplers.ddpm, variance=config.variance, noise_scale=knob)


def grid(config: C.Config) -> jax.Array:
    """Noise levels of the sampler: ``sample.steps`` + 1 of them, the last one 0."""
    section = config.sample
    ends = {"sigma_min": section.sigma_min, "sigma_max": section.sigma_max}
    match section.grid:
        case "karras":
            return grids.karras(section.steps, **ends)
        case "exponential":
            return grids.exponential(section.steps, **ends)
        case "polyexponential":
            return grids.polyexponential(section.steps, **ends)
        case "vp":
            return grids.vp(section.steps)
        case "flow":
            return grids.flow(section.steps)
        case "playground":
            return grids.playground(section.steps)
        case "uniform_time":
            return grids.uniform_time(schedule(config.schedule), section.steps)


def labels_to_cond(built: Model, labels: np.ndarray | None, count: int) -> Cond:
    """Conditioning of ``count`` samples: labels (count,), soft ones (count, K), or None: unconditional."""
    if built.condition == "none":
        return None
    if labels is None:
        return {k: jnp.broadcast_to(jnp.asarray(v), (count, *np.shape(v))) for k, v in built.null_cond.items()}
    if built.condition == "label":
        return {"label": jnp.asarray(labels, jnp.int32)}
    soft = labels if labels.ndim == 2 else np.eye(built.spec.num_classes)[labels]
    return {"context": jnp.asarray(soft, jnp.float32)}


def _initial(noise: str, keys: jax.Array, shape: tuple[int, ...], sigma: jax.Array) -> jax.Array:
    if noise == "uniform":
        return sigma * jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32, -1, 1))(keys)
    return samplers.initial_noise(keys, shape, sigma)


def draw(config: C.Config, built: Model, *, guided: bool, trajectory: bool = False) -> Callable[..., Any]:
    """Build the function that draws a batch of samples in model space; jit it.

    Args:
        config: the run; its section ``sample`` names sampler and clipping.
        built: from ``model``.
        guided: evaluate with and without condition and combine them.
        trajectory: also return the states at every noise level.

    Returns:
        ``draw(params, keys, sigmas, cond, scale) -> x``: keys (batch,), sigmas (n + 1,), scale a scalar.
    """
    run = sampler(config.sample)

    def denoiser_of(params: Params, scale: jax.Array) -> Denoiser:
        denoiser = denoisers.make_denoiser(built.network, params, built.parameterization)
        if guided:
            denoiser = guidance.classifier_free(denoiser, scale, built.null_cond)
        return denoisers.clip(denoiser) if config.sample.clip and built.spec.kind == "image" else denoiser

    def function(params: Params, keys: jax.Array, sigmas: jax.Array, cond: Cond, scale: jax.Array) -> Any:
        x = _initial(config.loss.noise, keys, built.spec.shape, sigmas[0])
        options = {"trajectory": True} if trajectory else {}
        return run(denoiser_of(params, scale), x, sigmas, keys, cond=cond, **options)

    return function
