"""Schedule, parameterization, noise levels and weighting from their names."""

import dataclasses
import functools
from typing import Any

from jaxdiff import config as C
from jaxdiff import losses
from jaxdiff import noise_levels as N
from jaxdiff import parameterizations as P
from jaxdiff import schedules as S
from jaxdiff.typing import Parameterization, Schedule, require

__all__ = ["noise_levels", "parameterization", "schedule", "steps_of", "weighting"]


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


def steps_of(config: C.Config) -> S.DiscreteSchedule:
    """The schedule, which must be one of steps.

    Raises:
        ValueError: it is continuous.
    """
    made = schedule(config.schedule)
    require(
        isinstance(made, S.DiscreteSchedule),
        f"loss.kind {config.loss.kind!r} needs a schedule of steps, not {config.schedule.kind!r}: use linear or cosine",
    )
    assert isinstance(made, S.DiscreteSchedule)  # narrows the type
    return made


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


def parameterization(config: C.Config) -> Parameterization:
    """Make what the network predicts."""
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


def noise_levels(config: C.Config) -> N.NoiseLevels:
    """Make the distribution of the training noise level."""
    section, path = config.noise_levels, schedule(config.schedule)
    options = functools.partial(_make, config=section, section="noise_levels", leave=("low_discrepancy",))
    match section.kind:
        case "uniform_time":
            made = options(N.UniformTime, schedule=path)
        case "normal_time":
            require(
                isinstance(path, S.RectifiedFlow) and config.parameterization.kind == "x0",
                "noise_levels.kind 'normal_time' needs schedule.kind rectified_flow and parameterization.kind x0",
            )
            made = options(N.NormalTime)
        case "log_normal":
            made = options(N.LogNormal)
        case "log_uniform":
            made = options(N.LogUniform)
        case "logit_normal":
            made = options(N.LogitNormal, schedule=path)
    return N.LowDiscrepancy(made) if section.low_discrepancy else made


def weighting(config: C.Config) -> losses.Weighting | None:
    """Make the weighting of the squared error; None is the plain loss of the network's output."""
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
