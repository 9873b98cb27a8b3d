"""Second-order single-step samplers: Heun's method and the midpoint method, plain, churned and ancestral."""

import math

from jaxtyping import Array, Float

from jaxdiff.samplers.coefficients import split
from jaxdiff.samplers.integrators import Options, Stage, slopes, stage_steps
from jaxdiff.samplers.loop import Grid, Result, Row, Scalar, Sigmas, as_grid, check_not_negative
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["dpm_2", "dpm_2_ancestral", "flow_heun", "heun", "heun_stages", "stochastic_heun"]


def heun_stages(grid: Grid, start: Row) -> list[Stage]:
    """The two stages of Heun's method from ``start`` to ``grid.inner``."""
    step = grid.inner - start
    return slopes(grid, start, [grid.inner, grid.inner], [[step], [step / 2, step / 2]])


def heun(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Heun's second-order method on ``dx/dsigma = d(x, sigma) = (x - D(x, sigma)) / sigma``.

    ``y = x + (sigma' - sigma) d(x, sigma)``; ``x' = x + (sigma' - sigma) (d(x, sigma) + d(y, sigma')) / 2``.
    A step to sigma' = 0 is an Euler step, so there the result is the last estimate.

    Calls of the denoiser: 2n - 1 on a grid that ends in 0, 2n on one that does not. Where the sigmas are
    traced their last value is not known in time: then it is 2n, of which a step to 0 ignores the last, unless
    ``ends_at_zero=True`` promises the 0.

    Args:
        sigmas: decreasing, or increasing for inversion.

    Raises:
        ValueError: for sigmas or a state that cannot be used, or sigmas that contradict ``ends_at_zero``.

    Reference: Karras et al. 2022, algorithm 1, arXiv:2206.00364.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    stages = heun_stages(grid, grid.here)
    return stage_steps(denoiser, x, grid, stages, Options(cond, trajectory, unroll), zero=ends_at_zero)


def stochastic_heun(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    s_churn: Scalar = 40.0,
    s_tmin: Scalar = 0.05,
    s_tmax: Scalar = 50.0,
    s_noise: Scalar = 1.003,
    first_step: int | Array = 0,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """EDM's stochastic sampler: raise the noise a little, then one step of :func:`heun` from there.

    ``gamma = min(s_churn/n, sqrt(2) - 1)`` where ``s_tmin <= sigma <= s_tmax``, else 0;
    ``sigma^ = (1 + gamma) sigma``; ``x^ = x + s_noise sqrt(sigma^^2 - sigma^2) z``; Heun from sigma^ to
    sigma'.
    As many calls of the denoiser as :func:`heun`: 2n - 1 on a grid known to end in 0.

    Args:
        key: needed unless ``s_churn`` or ``s_noise`` is the number 0.
        s_churn: noise added over the whole run, 0 or more; divided by the n of this call, so that a run in
            two parts takes its share in each.
        s_tmin: lowest noise level at which noise is added.
        s_tmax: highest noise level at which noise is added.
        s_noise: factor of the standard deviation of the noise added.

    Raises:
        ValueError: for a negative ``s_churn`` or ``s_noise``, a missing key, or sigmas or a state that cannot
            be used.

    Reference: Karras et al. 2022, algorithm 2 and table 5 (defaults: ImageNet-64), arXiv:2206.00364.
    """
    check_not_negative("s_churn", s_churn)
    check_not_negative("s_noise", s_noise)
    grid = as_grid(x, sigmas, inversion=is_zero(s_churn), values=(s_churn, s_tmin, s_tmax, s_noise))
    options = Options(cond, trajectory, unroll)
    gamma = grid.xp.minimum(s_churn / grid.num_steps, math.sqrt(2) - 1)
    gamma = grid.xp.where((grid.here >= s_tmin) & (grid.here <= s_tmax), gamma, 0)
    raised = grid.here * (1 + gamma)
    stages = heun_stages(grid, raised)
    if is_zero(s_churn) or is_zero(s_noise):
        return stage_steps(denoiser, x, grid, stages, options, zero=ends_at_zero, start=raised)
    # sqrt(sigma^^2 - sigma^2) as a product: nothing cancels for small gamma
    std = s_noise * grid.here * grid.xp.sqrt(gamma * (2 + gamma))
    return stage_steps(
        denoiser,
        x,
        grid,
        stages,
        options,
        zero=ends_at_zero,
        source=as_noise(key, x, "stochastic_heun", again=True),
        intervals=[(raised, grid.here)],
        first_step=first_step,
        start=raised,
        churn=std,
    )


def dpm_2(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """The midpoint method on ``dx/dsigma = (x - D)/sigma``, the midpoint taken in ``log sigma``.

    ``s = sqrt(sigma sigma')``, ``y = x + (s - sigma) d(x, sigma)``, ``x' = x + (sigma' - sigma) d(y, s)``. Order 2.
    A step to sigma' = 0 is an Euler step. Calls of the denoiser as for :func:`heun`: 2n - 1 on a grid known to
    end in 0, else 2n.

    Args:
        sigmas: decreasing, or increasing for inversion.

    Raises:
        ValueError: for sigmas or a state that cannot be used, or sigmas that contradict ``ends_at_zero``.

    Reference: inspired by Lu et al. 2022, DPM-Solver-2, arXiv:2206.00927; the form is k-diffusion's ``sample_dpm_2``.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    stages = _midpoint_stages(grid, grid.inner)
    return stage_steps(denoiser, x, grid, stages, Options(cond, trajectory, unroll), zero=ends_at_zero)


def dpm_2_ancestral(
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
    """:func:`dpm_2` to the lower noise level of an ancestral step, then fresh noise up to sigma'.

    down and up as for :func:`jaxdiff.samplers.euler_ancestral`; the midpoint is that of sigma and down. With
    eta = 0 it is :func:`dpm_2`. Calls of the denoiser as there.

    Args:
        sigmas: decreasing; for eta = 0 also increasing.
        key: needed unless ``eta`` is the number 0.
        eta: share of the noise that is drawn anew, in [0, 1]; at 1, steps go down to sigma'^2/sigma.

    Raises:
        ValueError: for ``eta`` outside [0, 1], a missing key, or sigmas or a state that cannot be used.

    Reference: the form is k-diffusion's ``sample_dpm_2_ancestral``.
    """
    check_eta(eta)
    check_not_negative("s_noise", s_noise)
    if is_zero(eta):
        return dpm_2(denoiser, x, sigmas, cond=cond, ends_at_zero=ends_at_zero, trajectory=trajectory, unroll=unroll)
    grid = as_grid(x, sigmas, inversion=False, values=(eta, s_noise))
    down, up = split(grid.here, grid.inner, eta, grid.xp)
    *stages, last = _midpoint_stages(grid, down)
    return stage_steps(
        denoiser,
        x,
        grid,
        [*stages, last._replace(noise=[s_noise * up])],
        Options(cond, trajectory, unroll),
        zero=ends_at_zero,
        source=as_noise(key, x, "dpm_2_ancestral with eta > 0"),
        intervals=[(grid.here, grid.there)],
        first_step=first_step,
    )


def flow_heun(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    ends_at_zero: bool | None = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Heun's method on the straight path, in flow time: ``du/dt = v = eps - x0``.

    With ``t = sigma/(1 + sigma)``, ``u = x/(1 + sigma)`` and ``v(u, t) = (u - D)/t``: ``w = u + (t' - t) v(u, t)``,
    ``u' = u + (t' - t) (v(u, t) + v(w, t')) / 2``. Heun's method does not commute with the change of time, so this
    is not :func:`heun`; :func:`jaxdiff.grids.flow` has the shift. A step to 0 is an Euler step. Order 2; calls of
    the denoiser as for :func:`heun`.

    Args:
        x: state at noise level ``sigmas[0]``, shape (batch, ...): ``x0 + sigma eps``, not u.
        sigmas: decreasing, or increasing for inversion.
        trajectory: also return the states x, shape (n + 1, batch, ...).

    Raises:
        ValueError: for sigmas or a state that cannot be used, or sigmas that contradict ``ends_at_zero``.

    Reference: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, section 5.3.2 (the shift), arXiv:2403.03206.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    here, there = grid.here, grid.inner
    now, then = here / (1 + here), there / (1 + there)  # flow times
    step = then - now
    # v = (u - D)/t, of u = x/(1 + sigma), times 1 + sigma' to come back to x
    gain, rest = (1 + there) / (1 + here), (1 + there) * step
    middle = Stage(there, gain * (1 + step / now), [-rest / now])
    half = rest / 2
    keep = gain * (1 + step / 2 / now) + half / then * middle.keep / (1 + there)
    weights = [-half / now + half / then * middle.weights[0] / (1 + there), -half / then]
    stages = [middle, Stage(there, keep, weights)]
    return stage_steps(denoiser, x, grid, stages, Options(cond, trajectory, unroll), zero=ends_at_zero)


def check_eta(eta: Scalar) -> None:
    """Raise ``ValueError`` for a Python number outside [0, 1]."""
    if isinstance(eta, float | int) and not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]: 0 draws no noise.")


def _midpoint_stages(grid: Grid, there: Row) -> list[Stage]:
    middle = grid.xp.sqrt(grid.here * there)
    nought = grid.xp.zeros_like(there)
    return slopes(grid, grid.here, [middle, there], [[middle - grid.here], [nought, there - grid.here]])
