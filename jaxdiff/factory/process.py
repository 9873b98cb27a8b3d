"""Schedule, parameterization, noise levels and weighting of a configuration."""

from jaxdiff import config as C
from jaxdiff import losses
from jaxdiff import noise_levels as N
from jaxdiff import parameterizations as P
from jaxdiff import schedules as S
from jaxdiff.typing import Parameterization, Schedule, require

__all__ = ["noise_levels", "parameterization", "schedule", "weighting"]


def schedule(config: C.ScheduleConfig) -> Schedule:
    """Make the noise schedule."""
    made = config.make({})
    return S.ZeroTerminalSNR(base=made) if config.ends_in_noise else made


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
    """Make the distribution of the training noise level.

    Raises:
        ValueError: a law of times for a path that it does not belong to.
    """
    section, path = config.noise_levels, schedule(config.schedule)
    require(
        section.kind != "normal_time" or (isinstance(path, S.RectifiedFlow) and config.parameterization.kind == "x0"),
        "noise_levels.kind 'normal_time' needs schedule.kind rectified_flow and parameterization.kind x0",
    )
    made = section.make({"schedule": path})
    return N.LowDiscrepancy(made) if section.low_discrepancy else made


def weighting(config: C.Config) -> losses.Weighting:
    """Make the weighting of the squared error of x0."""
    sigma_data = config.parameterization.sigma_data
    scale = 0.5 if sigma_data == "auto" else float(sigma_data)
    return config.weighting.make({"parameterization": parameterization(config), "sigma_data": scale})
