"""The SDE members of the DPM-Solver++ family: two calls per step, or the memory of earlier steps."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxdiff.samplers.coefficients import data_moments, history, orders, split
from jaxdiff.samplers.dpm_solver import differences, exponential_stages
from jaxdiff.samplers.integrators import Fresh, Options, Stage, linear_steps, stage_steps
from jaxdiff.samplers.loop import Grid, Result, Row, Scalar, Sigmas, as_grid, check_choice, check_not_negative
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.samplers.second_order import check_eta
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["dpmpp_2m_sde", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "dpmpp_sde", "seeds"]


def dpmpp_2s_ancestral(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 1.0,
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(2S) to the lower noise level of an ancestral step, then fresh noise up to sigma'.

    down and up as for :func:`jaxdiff.samplers.euler_ancestral`. With ``h = log(sigma/down)`` and the point
    ``y = e^(-h/2) x - expm1(-h/2) D`` halfway: ``x' = e^(-h) x - expm1(-h) D(y) + up z``. eta = 0 is DPM-Solver++(2S),
    of order 2. A step to sigma' = 0 gives the last estimate. Calls of the denoiser: 2n - 1 on a grid known to end
    in 0, else 2n.

    Args:
        key: needed unless ``eta`` is the number 0.
        eta: share of the noise that is drawn anew, in [0, 1]; may be traced.

    Raises:
        ValueError: for ``eta`` outside [0, 1], a missing key, or sigmas or a state that cannot be used.

    Reference: Lu et al. 2022, algorithm 1, arXiv:2211.01095; the form is k-diffusion's ``sample_dpmpp_2s_ancestral``.
    """
    check_eta(eta)
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(eta), values=(eta, s_noise))
    down, up = (grid.inner, grid.inner * 0) if is_zero(eta) else split(grid.here, grid.inner, eta, grid.xp)
    stages = exponential_stages(grid, down, 2)
    source = None if is_zero(eta) else as_noise(key, x, "dpmpp_2s_ancestral with eta > 0")
    stages[-1] = stages[-1]._replace(noise=[s_noise * up])
    return stage_steps(
        denoiser,
        x,
        grid,
        stages,
        Options(cond, trajectory, unroll),
        zero=ends_at_zero,
        source=source,
        intervals=[(grid.here, grid.there)],
        first_step=first_step,
    )


def dpmpp_sde(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 1.0,
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(SDE): two ancestral steps of the exponential integrator, the first to halfway in log sigma.

    ``s = sqrt(sigma sigma')``. From sigma to s, ancestral with eta: ``y = (down_s/sigma) x + (1 - down_s/sigma) D +
    up_s z_1``; from sigma to sigma': ``x' = (down/sigma) x + (1 - down/sigma) D(y, s) + up z``. The noise z of the
    whole step contains z_1, as on one Brownian path (clock 1/sigma^2). A step to sigma' = 0 gives the last
    estimate. Calls of the denoiser: 2n - 1 on a grid known to end in 0, else 2n; two draws of noise per step.

    Args:
        key: needed unless ``eta`` is the number 0.
        eta: share of the noise that is drawn anew, in [0, 1]; may be traced.

    Raises:
        ValueError: for ``eta`` outside [0, 1], a missing key, or sigmas or a state that cannot be used.

    Reference: Lu et al. 2022, arXiv:2211.01095; the form is k-diffusion's ``sample_dpmpp_sde`` with r = 1/2.
    """
    check_eta(eta)
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(eta), values=(eta, s_noise))
    xp, here, there = grid.xp, grid.here, grid.inner
    middle = xp.sqrt(here * there)
    nought = xp.zeros_like(here)
    (half, up_half), (down, up) = ((middle, nought), (there, nought))
    if not is_zero(eta):
        half, up_half = split(here, middle, eta, xp)
        down, up = split(here, there, eta, xp)
    share = (there / middle) ** 2  # of z's variance: 1/s^2 - 1/sigma^2 of 1/sigma'^2 - 1/sigma^2
    share = share * (1 - (middle / here) ** 2) / (1 - (there / here) ** 2)
    parts = [s_noise * up * xp.sqrt(share), s_noise * up * xp.sqrt(1 - share)]
    stages = [
        Stage(middle, half / here, [1 - half / here], [s_noise * up_half]),
        Stage(there, down / here, [nought, 1 - down / here], parts),
    ]
    source = None if is_zero(eta) else as_noise(key, x, "dpmpp_sde with eta > 0")
    return stage_steps(
        denoiser,
        x,
        grid,
        stages,
        Options(cond, trajectory, unroll),
        zero=ends_at_zero,
        source=source,
        intervals=[(here, middle), (middle, grid.there)],
        first_step=first_step,
    )


def seeds(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    order: int = 2,
    eta: Scalar = 1.0,
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """SEEDS: exponential integrator of the reverse SDE with 1, 2 or 3 stages, the noise of all on one path.

    ``dx = (1 + eta) (x - D)/sigma dsigma + sqrt(2 eta sigma) dw``, solved exactly for constant D between points at
    one half (order 2), or one and two thirds (order 3), of a step in log sigma: the drift as the single-step
    DPM-Solver++ with (1 + eta) h for h, the noise at sigma_b from sigma_a ``sigma_b (B(sigma_b^(-2 eta)) -
    B(sigma_a^(-2 eta))) sigma_b^eta``, B a Brownian motion. Order 1 is the exact ancestral step (eta = 1: DDPM). With
    eta = 0 of order ``order`` as an ODE method. A step to sigma' = 0 gives the last estimate. ``order`` calls of the
    denoiser and draws of noise per step; one call for a step known to go to 0.

    Args:
        key: needed unless ``eta`` is the number 0.
        order: stages, 1 to 3.
        eta: noise, 0 or more: 0 is the ODE, 1 the reverse SDE; may be traced.

    Raises:
        ValueError: for an unknown order, a negative ``eta``, a missing key, or sigmas or a state that cannot be used.

    Reference: Gonzalez et al. 2023, arXiv:2305.14267.
    """
    check_choice("order", order, (1, 2, 3))
    check_not_negative("eta", eta)
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(eta), values=(eta, s_noise))
    stages = exponential_stages(grid, grid.inner, order, eta=eta)
    levels = [grid.here, *[stage.sigma for stage in stages]]
    for i, stage in enumerate(stages):
        # sigma_b^(1 + eta) sqrt(tau_(j+1) - tau_j), tau = sigma^(-2 eta)
        spans = [-2 * eta * grid.xp.log(a / b) for a, b in zip(levels[: i + 1], levels[1:], strict=False)]
        rest = [(stage.sigma / b) ** eta for b in levels[1 : i + 2]]
        noise = [s_noise * stage.sigma * r * grid.xp.sqrt(-grid.xp.expm1(s)) for r, s in zip(rest, spans, strict=True)]
        stages[i] = stage._replace(noise=noise)
    source = None if is_zero(eta) else as_noise(key, x, "seeds with eta > 0")
    return stage_steps(
        denoiser,
        x,
        grid,
        stages,
        Options(cond, trajectory, unroll),
        zero=ends_at_zero,
        source=source,
        intervals=list(zip(levels[:-1], [*levels[1:-1], grid.there], strict=True)),
        first_step=first_step,
    )


def dpmpp_2m_sde(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 1.0,
    s_noise: Scalar = 1.0,
    solver_type: str = "midpoint",
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(2M SDE): the multistep exponential integrator of the SDE with noise eta.

    With ``h = log(sigma/sigma')``, ``H = (1 + eta) h``, ``r = h_last/h``:
    ``x' = e^(-H) x - expm1(-H) D + c (D - D_last)/r + sigma' sqrt(-expm1(-2 eta h)) z``, where c is
    ``-expm1(-H)/2`` ("midpoint") or ``1 + expm1(-H)/H`` ("heun"). The first step, and one to sigma' = 0 (which gives
    the last estimate), leave c out. With eta = 0 of order 2. n calls of the denoiser.

    Args:
        key: needed unless ``eta`` is the number 0.
        eta: noise, 0 or more: 0 is the ODE, 1 the reverse SDE; may be traced.
        solver_type: "midpoint" or "heun".

    Raises:
        ValueError: for a negative ``eta``, an unknown type, a missing key, or sigmas or a state that cannot be used.

    Reference: Lu et al. 2022, arXiv:2211.01095; the form is k-diffusion's ``sample_dpmpp_2m_sde``.
    """
    check_choice("solver_type", solver_type, ("midpoint", "heun"))
    grid, source = _check(x, sigmas, key, eta, s_noise, "dpmpp_2m_sde with eta > 0")
    moments = data_moments(2, (1 + eta) * grid.h, grid.xp)
    slope = moments[0] / 2 if solver_type == "midpoint" else moments[1]
    weights = [grid.h, grid.xp.where(orders(grid.num_steps, 2) == 2, -slope / _lags(grid, 2)[0], 0.0)]
    fresh = _fresh(grid, source, eta, s_noise, first_step)
    return _steps(denoiser, x, grid, weights, eta, fresh, Options(cond, trajectory, unroll))


def dpmpp_3m_sde(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 1.0,
    s_noise: Scalar = 1.0,
    curvature: float = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DPM-Solver++(3M SDE): :func:`dpmpp_2m_sde` with one more estimate of memory.

    D1 and D2 as for :func:`jaxdiff.samplers.dpmpp_3m`: ``x' = e^(-H) x - expm1(-H) D + phi D1 - c psi D2 + noise``,
    ``phi = 1 + expm1(-H)/H``, ``psi = phi/H - 1/2``, c = 1 as published (see there). The second step is that of
    :func:`dpmpp_2m_sde` with "heun". A step to sigma' = 0 gives the last estimate. n calls of the denoiser.

    Args:
        key: needed unless ``eta`` is the number 0.
        eta: noise, 0 or more: 0 is the ODE, 1 the reverse SDE; may be traced.
        curvature: c; 1 is the published method, 2 makes it of order 3 for eta = 0.

    Raises:
        ValueError: for a negative ``eta``, a missing key, or sigmas or a state that cannot be used.

    Reference: Lu et al. 2022, arXiv:2211.01095; the form is k-diffusion's ``sample_dpmpp_3m_sde``.
    """
    grid, source = _check(x, sigmas, key, eta, s_noise, "dpmpp_3m_sde with eta > 0")
    xp, lags, found = grid.xp, _lags(grid, 3), orders(grid.num_steps, 3)
    moments = data_moments(3, (1 + eta) * grid.h, xp)
    weights = differences(lags, moments, found, curvature, xp)
    weights[1] = xp.where(found == 2, -moments[1] / lags[0], weights[1])
    fresh = _fresh(grid, source, eta, s_noise, first_step)
    return _steps(denoiser, x, grid, weights, eta, fresh, Options(cond, trajectory, unroll))


def _check(
    x: Array, sigmas: Sigmas, key: Keys | NoiseSource | None, eta: Scalar, s_noise: Scalar, method: str
) -> tuple[Grid, NoiseSource | None]:
    check_not_negative("eta", eta)
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(eta), values=(eta, s_noise))
    return grid, None if is_zero(eta) else as_noise(key, x, method)


def _lags(grid: Grid, k: int) -> list[Row]:
    """The steps before in log sigma, newest first, in units of this one."""
    levels = history(grid, k)
    return [grid.xp.log(levels[j + 1] / levels[j]) / grid.h for j in range(k - 1)]


def _fresh(
    grid: Grid, source: NoiseSource | None, eta: Scalar, s_noise: Scalar, first_step: int | Array
) -> Fresh | None:
    """Noise of the exact step: ``s_noise sigma' sqrt(-expm1(-2 eta h))``."""
    std = s_noise * grid.there * grid.xp.sqrt(-grid.xp.expm1(-2 * eta * grid.h))
    return None if source is None else Fresh(source, std, first_step)


def _steps(
    denoiser: Denoiser,
    x: Array,
    grid: Grid,
    weights: Sequence[Row],
    eta: Scalar,
    fresh: Fresh | None,
    options: Options,
) -> Result:
    xp, zero = grid.xp, grid.there == 0
    keep = xp.where(zero, 0.0, xp.exp(-(1 + eta) * grid.h))
    weights = [xp.where(zero, 0.0, w) for w in weights]
    return linear_steps(denoiser, x, grid, keep, weights, options, fresh=fresh)
