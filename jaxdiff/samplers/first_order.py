"""First-order samplers without noise, or with DDIM's: all are the step ``x' = D + keep (x - D) + std z``."""

from jaxtyping import Array, Float

from jaxdiff.pytrees import compiled
from jaxdiff.samplers.coefficients import split
from jaxdiff.samplers.integrators import Fresh, Options, linear_steps
from jaxdiff.samplers.loop import Result, Scalar, Sigmas, as_grid, cast, check_not_negative, estimate, pack, scan_steps
from jaxdiff.samplers.noise import as_noise, is_zero
from jaxdiff.typing import Cond, Denoiser, Keys, NoiseSource

__all__ = ["ddim", "euler", "euler_ancestral", "flow_euler", "playground"]


def euler(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Euler's method on the probability-flow ODE ``dx/dsigma = (x - D(x, sigma)) / sigma``.

    ``x' = D + (sigma'/sigma) (x - D)``: also DDIM with eta = 0, DPM-Solver-1, and the Euler step of rectified
    flow. Order 1; n calls of the denoiser. The result at sigma' = 0 is the last estimate.

    Args:
        sigmas: decreasing, or increasing for inversion.

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Karras et al. 2022, equation 4, arXiv:2206.00364; Song et al. 2021, arXiv:2010.02502.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    return linear_steps(denoiser, x, grid, grid.there / grid.here, [], Options(cond, trajectory, unroll))


def ddim(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 0.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """DDIM: from Euler's ODE step (eta = 0) to DDPM's ancestral step with the lower variance (eta = 1).

    ``x' = D + (sqrt(sigma'^2 - u^2) / sigma) (x - D) + u z`` with
    ``u = eta sigma' sqrt(sigma^2 - sigma'^2) / sigma``. n calls of the denoiser; at sigma' = 0 the result is
    the last estimate.

    Args:
        sigmas: decreasing; for eta = 0 also increasing.
        key: needed unless ``eta`` is the number 0.
        eta: share of the noise that is drawn anew, in [0, 1]; may be traced.

    Raises:
        ValueError: for ``eta`` outside [0, 1], a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2021, equations 12 and 16, arXiv:2010.02502.
    """
    if isinstance(eta, float | int) and not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} must lie in [0, 1]: 0 is DDIM, 1 is DDPM.")
    return euler_ancestral(
        denoiser, x, sigmas, key, cond=cond, eta=eta, first_step=first_step, trajectory=trajectory, unroll=unroll
    )


def euler_ancestral(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    eta: Scalar = 1.0,
    s_noise: Scalar = 1.0,
    first_step: int | Array = 0,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Euler's method to a lower noise level than asked for, then fresh noise up to it.

    ``up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma)``, ``down = sqrt(sigma'^2 - up^2)``;
    ``x' = D + (down/sigma) (x - D) + s_noise up z``. With eta in [0, 1] and s_noise = 1 it is :func:`ddim`; here
    eta may be larger. n calls of the denoiser; at sigma' = 0 the result is the last estimate.

    Args:
        sigmas: decreasing; for eta = 0 also increasing.
        key: needed unless ``eta`` is the number 0.
        eta: share of the noise that is drawn anew, 0 or more; may be traced.

    Raises:
        ValueError: for a negative ``eta``, a missing key, or sigmas or a state that cannot be used.

    Reference: Song et al. 2021, equation 16, arXiv:2010.02502; the form is k-diffusion's ``sample_euler_ancestral``.
    """
    check_not_negative("eta", eta)
    check_not_negative("s_noise", s_noise)
    options = Options(cond, trajectory, unroll)
    if is_zero(eta):
        return euler(denoiser, x, sigmas, cond=cond, trajectory=trajectory, unroll=unroll)
    source = as_noise(key, x, "a sampler with eta > 0")
    grid = as_grid(x, sigmas, inversion=False, values=(eta, s_noise))
    down, up = split(grid.here, grid.there, eta, grid.xp)
    fresh = Fresh(source, s_noise * up, first_step)
    return linear_steps(denoiser, x, grid, down / grid.here, [], options, fresh=fresh)


def flow_euler(
    denoiser: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Sigmas,
    key: Keys | NoiseSource | None = None,
    *,
    cond: Cond = None,
    trajectory: bool = False,
    unroll: int = 1,
) -> Result:
    """Euler's method on the straight path ``u = (1 - a) x0 + a eps``: rectified flow, and the playground's mixing.

    ``u <- u (1 - w) + w D`` with ``u = x / (1 + sigma)``, ``a = sigma / (1 + sigma)`` and ``w = 1 - a'/a``; the
    velocity is ``eps - x0 = (u - D)/a``. On :func:`jaxdiff.grids.playground` that is ``w = 1/(n - i)``, small
    steps in noise and large ones near the data; :func:`jaxdiff.grids.flow` has the shift. It equals
    :func:`euler` on every grid. n calls of the denoiser; at sigma' = 0 the result is the last estimate.

    Args:
        x: state at noise level ``sigmas[0]``, shape (batch, ...): ``x0 + sigma eps``, not the mixture.
        sigmas: decreasing, or increasing for inversion.
        trajectory: also return the states x, shape (n + 1, batch, ...); the mixtures are states/(1 + sigma).

    Raises:
        ValueError: for sigmas or a state that cannot be used.

    Reference: Liu et al. 2023, algorithm 1, arXiv:2209.03003; Heitz et al. 2023, algorithm 4, arXiv:2305.03486.
    """
    del key
    grid = as_grid(x, sigmas, inversion=True)
    weight = (grid.here - grid.there) / (grid.here * (1 + grid.there))  # 1 - a'/a
    rows = cast((grid.here, weight, 1 + grid.here, 1 + grid.there), x)
    return _mixing_steps(denoiser, x, rows, Options(cond, trajectory, unroll))


@compiled
def _mixing_steps(denoiser: Denoiser, x: Array, rows: tuple[Array, ...], options: Options) -> Result:
    """The steps of :func:`flow_euler`, on u."""

    def step(mix: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        sigma, weight, before, after = row
        pred = estimate(denoiser, before * mix, sigma, options.cond)
        mix = mix * (1 - weight) + pred * weight
        return mix, after * mix

    mix, states = scan_steps(step, x / rows[2][0], rows, trajectory=options.trajectory, unroll=options.unroll)
    return pack(x, mix * rows[3][-1], states)


playground = flow_euler  # the name under which the playground teaches it
