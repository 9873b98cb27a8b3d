"""Pictures of the forward and of the reverse process."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from jaxdiff.outputs import Metadata, image_grid, write_gif
from jaxdiff.typing import EitherArray, Schedule, require
from jaxdiff.viz.style import displayable, image_table, pick

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = [
    "denoiser_pairs",
    "forward_strip",
    "mixture_scale",
    "reverse_frames",
    "reverse_gif",
    "reverse_strip",
    "sample_grid",
    "unit_scale",
]


def unit_scale(x: Float[EitherArray, "n ..."], sigmas: Float[EitherArray, " _"]) -> Float[np.ndarray, "n ..."]:
    """Bring states of the variance-exploding frame to a range that can be seen: ``x / sqrt(1 + sigma^2)``.

    Args:
        x: states, the noise level changing along the first axis.
        sigmas: noise level of each, not negative.

    Returns:
        States of about unit variance at every noise level, as a variance-preserving path has them.

    Raises:
        ValueError: lengths that differ, or a negative or unbounded noise level.
    """
    return _divided(x, sigmas, lambda levels: np.sqrt(1 + levels**2))


def mixture_scale(x: Float[EitherArray, "n ..."], sigmas: Float[EitherArray, " _"]) -> Float[np.ndarray, "n ..."]:
    """Bring states of the variance-exploding frame to the mixture ``x / (1 + sigma) = (1 - a) x0 + a eps``.

    With ``a = sigma / (1 + sigma)``. Uniform noise in [-1, 1] keeps the range of images at every noise level.

    Args:
        x: states, the noise level changing along the first axis.
        sigmas: noise level of each, not negative.

    Returns:
        States as a path that mixes data with noise (rectified flow, deblending) has them.

    Raises:
        ValueError: lengths that differ, or a negative or unbounded noise level.
    """
    return _divided(x, sigmas, lambda levels: 1 + levels)


def _divided(x: EitherArray, sigmas: EitherArray, divisor: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    states, levels = np.asarray(x), np.asarray(sigmas, np.float64)
    require(
        levels.shape == states.shape[:1],
        f"one sigma is needed for each of {len(states)} states, got shape {levels.shape}",
    )
    if not (np.isfinite(levels).all() and (levels >= 0).all()):
        raise ValueError(f"sigmas must be finite and not negative, got {levels}")
    factor = 1 / divisor(levels)
    return (states * factor.reshape(-1, *(1,) * (states.ndim - 1))).astype(states.dtype)


def forward_strip(
    x0: Float[EitherArray, "n h w c"],
    schedule: Schedule,
    *,
    columns: int = 9,
    times: Sequence[float] | None = None,
    seed: int = 0,
    title: str = "Forward process",
) -> "matplotlib.figure.Figure":
    """Show images noised more and more: ``x_t = alpha(t) x0 + sigma(t) eps`` with one eps for each image.

    Drawn is ``x_t / sqrt(alpha^2 + sigma^2)``, clipped to [-1, 1], so that paths whose variance explodes can
    be seen too; for variance-preserving ones this is x_t itself.

    Args:
        x0: clean images in model space [-1, 1], one row each.
        schedule: anything with ``alpha(t)`` and ``sigma(t)``; with ``num_steps`` the columns count steps.
        columns: how many times, from t = 0 to t = 1, evenly spaced.
        times: the times themselves, in [0, 1]; they take the place of ``columns``.
        seed: seed of the noise.
        title: title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: times outside [0, 1] or fewer than two columns.
    """
    num_steps = getattr(schedule, "num_steps", None)
    if times is None:
        require(columns >= 2, f"columns must be at least 2, got {columns}")
        t = np.linspace(0.0, 1.0, columns)
        t = np.rint(t * num_steps) / num_steps if num_steps else t
    else:
        t = np.asarray(times, np.float64)
    if not len(t) or t.min() < 0 or t.max() > 1:
        raise ValueError(f"times must lie in [0, 1], got {list(t)}")
    clean = np.asarray(x0, np.float64)
    eps = np.random.default_rng(seed).standard_normal(clean.shape)
    alpha, sigma = (np.asarray(f(jnp.asarray(t, jnp.float32)), np.float64) for f in (schedule.alpha, schedule.sigma))
    unit = np.hypot(alpha, sigma)
    rows = [
        np.stack([(a * x + s * e) / u for a, s, u in zip(alpha, sigma, unit, strict=True)])
        for x, e in zip(clean, eps, strict=True)
    ]
    names = [f"step {round(one * num_steps)}" if num_steps else f"t = {one:.3g}" for one in t]
    with np.errstate(divide="ignore"):
        levels = sigma / alpha
    titles = [f"{name}\nσ/α = {_short(float(level))}" for name, level in zip(names, levels, strict=True)]
    return image_table(rows, column_titles=titles, row_titles=[""] * len(rows), title=title)


def denoiser_pairs(
    noisy: Float[EitherArray, "n h w c"],
    denoised: Float[EitherArray, "_ h w c"],
    *,
    clean: Float[EitherArray, "_ h w c"] | None = None,
    amounts: Float[EitherArray, " _"] | None = None,
    amount_name: str = "σ",
    title: str = "What the denoiser makes of its input",
) -> "matplotlib.figure.Figure":
    """Show inputs of a denoiser above its outputs, and the truth above both.

    Args:
        noisy: inputs, in the range they should be drawn in ([-1, 1]; see `unit_scale` for large noise).
        denoised: outputs, in model space.
        clean: what was noised, in model space.
        amounts: noise level or amount of each column, for its title.
        amount_name: symbol of the amount.
        title: title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: lengths that differ.
    """
    rows = {"clean": clean, "input": noisy, "output": denoised}
    drawn = {name: np.asarray(images) for name, images in rows.items() if images is not None}
    count = len(drawn["input"])
    require(
        all(len(images) == count for images in drawn.values()) and (amounts is None or len(amounts) == count),
        "noisy, denoised, clean and amounts must have one length",
    )
    titles = [""] * count if amounts is None else [f"{amount_name} = {_short(float(a))}" for a in np.asarray(amounts)]
    return image_table(list(drawn.values()), column_titles=titles, row_titles=list(drawn), title=title)


def reverse_strip(
    trajectory: Float[EitherArray, "steps n h w c"],
    sigmas: Float[EitherArray, " _"],
    *,
    denoised: Float[EitherArray, "calls n h w c"] | None = None,
    columns: int = 8,
    samples: int = 4,
    scale: Callable[[EitherArray, EitherArray], np.ndarray] = unit_scale,
    title: str | None = None,
) -> "matplotlib.figure.Figure":
    """Show how samples come out of noise, and what the denoiser took each state for.

    Args:
        trajectory: states of the variance-exploding frame, from noise to sample.
        sigmas: noise level of each state.
        denoised: estimates of x0 at each state, or at each but the last; drawn as a second row.
        columns: how many states to show, the first and the last among them.
        samples: how many samples to show.
        scale: brings states (n, ...) at levels (n,) to a range that can be seen: `unit_scale` or `mixture_scale`.
        title: title of the figure; None names the number of steps.

    Returns:
        The figure.

    Raises:
        ValueError: lengths that do not fit, or fewer than two columns or one sample.
    """
    states, levels = np.asarray(trajectory), np.asarray(sigmas)
    require(samples >= 1, f"samples must be at least 1, got {samples}")
    chosen = pick(len(states), columns)
    visible = scale(states[chosen], levels[chosen])
    estimates = None
    if denoised is not None:
        estimates = np.asarray(denoised)
        if len(estimates) == len(states) - 1:  # the last state is its own estimate
            estimates = np.concatenate([estimates, states[-1:]])
        require(
            estimates.shape == states.shape,
            f"denoised must have shape {states.shape} or one state less, got {estimates.shape}",
        )
    rows, names = [], []
    for sample in range(min(samples, states.shape[1])):
        rows.append(visible[:, sample])
        names.append("state")
        if estimates is not None:
            rows.append(estimates[chosen][:, sample])
            names.append("estimate")
    titles = [f"step {i}\nσ = {_short(float(levels[i]))}" for i in chosen]
    names = names if estimates is not None else [""] * len(rows)
    title = f"Reverse process, {len(states) - 1} steps" if title is None else title
    return image_table(rows, column_titles=titles, row_titles=names, title=title, group=1 if estimates is None else 2)


def reverse_frames(
    trajectory: Float[EitherArray, "steps n h w c"],
    sigmas: Float[EitherArray, " _"],
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> UInt8[np.ndarray, "steps height width c"]:
    """Turn states into the frames of an animation, each a grid of all samples.

    Args:
        trajectory: states of the variance-exploding frame, from noise to sample; drawn by `unit_scale`.
        sigmas: noise level of each state.
        columns: samples in a row of the grid; None makes it nearly square.
        scale: integer enlargement; None makes small images readable.

    Returns:
        One uint8 frame for each state.

    Raises:
        ValueError: lengths that do not fit or values that are not finite.
    """
    visible = displayable(unit_scale(trajectory, sigmas))
    pixels = np.rint(255 * visible).astype(np.uint8)
    return np.stack([image_grid(frame, columns=columns, scale=scale) for frame in pixels])


def reverse_gif(
    path: str | os.PathLike[str],
    trajectory: Float[EitherArray, "steps n h w c"],
    sigmas: Float[EitherArray, " _"],
    *,
    fps: float = 30.0,
    hold_last: float = 1.0,
    columns: int | None = None,
    scale: int | None = None,
    metadata: Metadata | None = None,
) -> Path:
    """Write the reverse process as a GIF that loops for ever.

    Args:
        path: file to write, ending in ``.gif``.
        trajectory: states of the variance-exploding frame, from noise to sample.
        sigmas: noise level of each state.
        fps: frames per second; `jaxdiff.outputs.gif_delays` says how the format keeps it.
        hold_last: seconds by which the finished samples stay longer.
        columns: see `reverse_frames`.
        scale: see `reverse_frames`.
        metadata: kept in the comment of the file.

    Returns:
        The path written.

    Raises:
        ValueError: as `reverse_frames` and `jaxdiff.outputs.write_gif`.
    """
    frames = reverse_frames(trajectory, sigmas, columns=columns, scale=scale)
    return write_gif(path, frames, fps=fps, hold_last=hold_last, metadata=metadata)


def sample_grid(
    images: Shaped[EitherArray, "n h w c"],
    *,
    columns: int = 8,
    labels: Sequence[str] | None = None,
    title: str = "Samples",
) -> "matplotlib.figure.Figure":
    """Show samples in a grid (`jaxdiff.outputs.write_grid` writes pixels without a frame around them).

    Args:
        images: uint8 or model space.
        columns: images per row.
        labels: a text above each image.
        title: title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: no images, or a number of labels that does not fit.
    """
    from jaxdiff.viz.style import figure, show_image, style

    drawn = displayable(images)
    require(
        len(drawn) > 0 and columns >= 1 and (labels is None or len(labels) == len(drawn)),
        f"{len(drawn)} images do not fit {columns} columns or the number of labels",
    )
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    with style():
        head = 0.2 if labels is not None else 0.0
        new = figure(columns * 0.9, rows * (0.9 * drawn.shape[1] / drawn.shape[2] + head) + 0.4)
        for i, axes in enumerate(new.subplots(rows, columns, squeeze=False).flat):
            if i < len(drawn):
                show_image(axes, drawn[i])
                if labels is not None:
                    axes.set_title(labels[i], loc="center", fontsize=9, fontweight="normal", pad=3)
            else:
                axes.set_axis_off()
        new.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return new


def _short(value: float) -> str:
    """Two digits that count; an exponent only where the digits would not fit a column."""
    if not np.isfinite(value):
        return "∞"
    if value >= 9999.5:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if value >= 99.5:
        return f"{value:.0f}"
    return "0" if value == 0 else f"{value:.2g}" if value >= 0.001 else f"{value:.0e}"
