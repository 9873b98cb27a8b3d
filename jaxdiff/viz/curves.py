"""Curves: schedules, time embeddings, training logs and knob studies."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Shaped

from jaxdiff.typing import EitherArray, Schedule, require
from jaxdiff.viz.style import COLOURS, LINE_STYLES, figure, smooth, style

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_BIN = re.compile(r"loss_bin_\d+")

__all__ = ["Log", "embedding_map", "knob_study", "loss_curves", "read_log", "schedule_curves", "sinusoid"]

Log: TypeAlias = dict[str, tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]
"""For each quantity logged: the steps at which it was, and its values."""


def schedule_curves(
    schedules: Mapping[str, Schedule], *, steps: int = 1000, title: str = "Noise schedules"
) -> "matplotlib.figure.Figure":
    """Compare schedules by their betas, their alpha-bars and their signal-to-noise ratios.

    ``alpha_bar(t) = alpha^2 / (alpha^2 + sigma^2)``, which is the usual one for variance-preserving paths and
    puts every other path beside them, and ``beta_n = 1 - alpha_bar(n/T) / alpha_bar((n-1)/T)``. A
    schedule with ``betas()`` of its own is drawn with those, over its own number of steps.

    Args:
        schedules: names to schedules; at most 28 lines can be told apart.
        steps: T for schedules in continuous time.
        title: title of the figure.

    Returns:
        The figure, with three panels.

    Raises:
        ValueError: no schedule, or fewer than 2 steps.
    """
    require(
        len(schedules) > 0 and steps >= 2,
        f"at least one schedule and 2 steps are needed, got {len(schedules)} and {steps}",
    )
    with style():
        new = figure(11.5, 3.7)
        axes: Any = new.subplots(1, 3)
        for i, (name, schedule) in enumerate(schedules.items()):
            betas, alpha_bars = _tables(schedule, steps)
            t = np.arange(1, len(betas) + 1) / len(betas)
            look = _look(i)
            axes[0].plot(t, np.maximum(betas, 1e-12), label=name, **look)
            axes[1].plot(t, alpha_bars, **look)
            with np.errstate(divide="ignore"):
                log_snr = np.log(alpha_bars) - np.log1p(-alpha_bars)
            finite = np.isfinite(log_snr)
            axes[2].plot(t[finite], log_snr[finite], **look)
        axes[0].set(title="β of one step", ylabel="β (log scale)", yscale="log")
        axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], 1e-5), top=1.5)
        axes[1].set(title="Signal kept, ᾱ", ylabel="ᾱ = α² / (α² + σ²)", ylim=(-0.02, 1.02))
        axes[2].set(title="Log signal-to-noise ratio", ylabel="ln(α² / σ²)", ylim=(-16, 16))
        for one in axes:
            one.set(xlabel="t (0 data, 1 noise)", xlim=(0, 1))
        new.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
        new.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return new


def _tables(schedule: Schedule, steps: int) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Betas and alpha-bars at t = 1/T .. 1."""
    own = getattr(schedule, "betas", None)
    if callable(own):
        tables: Any = schedule
        return np.asarray(tables.betas(), np.float64), np.asarray(tables.alphas_cumprod(), np.float64)
    t = jnp.asarray(np.arange(steps + 1) / steps, jnp.float32)
    alpha, sigma = (np.asarray(f(t), np.float64) for f in (schedule.alpha, schedule.sigma))
    alpha_bars = alpha**2 / (alpha**2 + sigma**2)
    return 1 - alpha_bars[1:] / alpha_bars[:-1], alpha_bars[1:]


def _look(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINE_STYLES[i % len(LINE_STYLES)]}


def sinusoid(
    positions: Shaped[EitherArray, " n"], dim: int, *, max_period: float = 10_000.0
) -> Float64[np.ndarray, "n dim"]:
    """Sinusoidal embedding: ``[sin(p w_i), cos(p w_i)]`` with ``w_i = max_period^(-i / (dim/2))``.

    Args:
        positions: numbers to embed, e.g. steps 0 to 999.
        dim: size of the embedding, even.
        max_period: about the longest period, in positions divided by 2 pi.

    Returns:
        One row for each position: all sines, then all cosines.

    Raises:
        ValueError: an odd or too small ``dim``, or ``max_period`` not above 1.

    Reference: Vaswani et al. 2017, section 3.5, arXiv:1706.03762; halves side by side as in Ho et al. 2020.
    """
    require(dim >= 2 and dim % 2 == 0, f"dim must be even and at least 2, got {dim}")
    require(max_period > 1, f"max_period must be above 1, got {max_period}")
    half = dim // 2
    angles = np.asarray(positions, np.float64)[:, None] * max_period ** (-np.arange(half) / half)[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def embedding_map(
    embedding: Float[EitherArray, "n dim"] | None = None,
    *,
    positions: Shaped[EitherArray, " n"] | None = None,
    dim: int = 128,
    max_period: float = 10_000.0,
    title: str = "Sinusoidal embedding of the time step",
) -> "matplotlib.figure.Figure":
    """Show what a network is told about time: one row for each step, one column for each channel.

    Args:
        embedding: the embedding; None computes `sinusoid`.
        positions: steps that the rows stand for, increasing; None counts from 0 (to 999 without
            ``embedding``).
        dim: size of the embedding that is computed.
        max_period: of the embedding that is computed.
        title: title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: as `sinusoid`, or positions that do not fit the embedding.
    """
    if positions is None:
        positions = np.arange(1000 if embedding is None else len(embedding))
    rows = np.asarray(positions)
    values = sinusoid(rows, dim, max_period=max_period) if embedding is None else np.asarray(embedding)
    require(len(values) == len(rows) > 0, f"embedding has {len(values)} rows for {len(rows)} positions")
    halves = f" ({dim // 2} sines, {dim // 2} cosines)" if embedding is None else ""
    bound = max(float(np.abs(values).max()), 1e-12)
    with style():
        new = figure(6.4, 4.2)
        axes = new.subplots()
        extent = (-0.5, values.shape[1] - 0.5, float(rows[-1]) + 0.5, float(rows[0]) - 0.5)
        drawn = axes.imshow(
            values,
            cmap="RdBu_r",
            vmin=-bound,
            vmax=bound,
            aspect="auto",
            extent=extent,
            interpolation="nearest",
        )
        axes.set(xlabel=f"channel of the embedding{halves}", ylabel="step", title=title)
        axes.grid(False)
        bar = new.colorbar(drawn, ax=axes, label="value", pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return new


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read the log of a training run: one JSON object on each line, with "step" and numbers.

    A run that was resumed may have logged a step twice: the later line counts. A last line without its
    newline is a run that is still writing and is left out.

    Args:
        path: the ``log.jsonl`` of a run.

    Returns:
        For each quantity its steps, increasing, and its values.

    Raises:
        ValueError: a line that is no such object (its number is given), or no line.
        FileNotFoundError: no such file.
    """
    text = Path(path).read_text()
    series: dict[str, dict[float, float]] = {}
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.strip() or not line.endswith("\n"):
            continue
        try:
            entry = json.loads(line)
            step = float(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number} is no JSON object with a step: {line.strip()[:60]!r}") from error
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, {})[step] = float(value)
    require(bool(series), f"{path} holds no logged numbers")
    log = {}
    for name, points in series.items():
        steps = sorted(points)
        log[name] = (np.array(steps), np.array([points[step] for step in steps]))
    return log


def loss_curves(
    log: Log,
    *,
    smoothing: float = 0.9,
    bin_edges: Sequence[float] | None = None,
    title: str = "Training",
) -> "matplotlib.figure.Figure":
    """Show the loss, the norm of the gradient, and the loss by noise level, as far as they were logged.

    The loss as a whole says little about samples, because it is a mean over noise levels of very different
    difficulty; its parts say where a model still learns.

    Args:
        log: see `read_log`; drawn are "loss", "grad_norm" and "loss_bin_0", "loss_bin_1", ... (bin 0 the
            least noise).
        smoothing: weight of the past in the moving average, in [0, 1); raw values stay visible behind it.
        bin_edges: the noise levels that separate the bins, for the legend; None numbers the bins.
        title: title of the figure.

    Returns:
        The figure, with as many panels as there are quantities.

    Raises:
        ValueError: a log without "loss", smoothing outside [0, 1), or edges that do not fit the bins.
    """
    require("loss" in log, f"the log has no 'loss', only {', '.join(sorted(log)) or 'nothing'}")
    bins = sorted((name for name in log if _BIN.fullmatch(name)), key=lambda name: int(name[9:]))
    names = _bin_names([int(name[9:]) for name in bins], bin_edges)
    panels = ["loss"] + ["grad_norm"] * ("grad_norm" in log) + ["bins"] * bool(bins)
    with style():
        import matplotlib

        new = figure(0.6 + 3.8 * len(panels) + (1.4 if bins else 0), 3.6)
        axes: Any = dict(zip(panels, new.subplots(1, len(panels), squeeze=False)[0], strict=True))
        _raw_and_smooth(axes["loss"], *log["loss"], smoothing, COLOURS[0])
        axes["loss"].set(title="Loss", ylabel="loss")
        axes["loss"].legend(loc="upper right")
        if "grad_norm" in log:
            _raw_and_smooth(axes["grad_norm"], *log["grad_norm"], smoothing, COLOURS[1])
            axes["grad_norm"].set(title="Gradient norm", ylabel="norm")
        if bins:
            colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(bins)))
            for name, shown, colour in zip(bins, names, colours, strict=True):
                steps, values = log[name]
                axes["bins"].plot(steps, smooth(values, smoothing), color=colour, label=shown)
            place: Any = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.04), "title_fontsize": 9}
            axes["bins"].legend(title="noise-level bin" if bin_edges is None else "noise level σ", **place)
            axes["bins"].set(title="Loss by noise level", ylabel="loss, averaged")
        for one in axes.values():
            one.set(xlabel="step")
            _log_scale(one)
        new.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return new


def _bin_names(bins: list[int], edges: Sequence[float] | None) -> list[str]:
    """Texts of the legend: ranges where the edges are known, else numbers."""
    if edges is None:
        notes = {0: " (least noise)", len(bins) - 1: " (most noise)"} if len(bins) > 1 else {}
        return [f"{number}{notes.get(i, '')}" for i, number in enumerate(bins)]
    if bins and max(bins) > len(edges):
        raise ValueError(f"{len(edges)} bin edges separate {len(edges) + 1} bins, but bin {max(bins)} was logged")
    ends = ["0", *(f"{edge:g}" for edge in edges), "∞"]
    return [f"{ends[number]} to {ends[number + 1]}" for number in bins]


def _raw_and_smooth(
    axes: "matplotlib.axes.Axes",
    steps: Float64[np.ndarray, " n"],
    values: Float64[np.ndarray, " n"],
    smoothing: float,
    colour: str,
) -> None:
    """Raw values faint, their average strong."""
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, label="as logged")
    axes.plot(steps, smooth(values, smoothing), color=colour, label=f"average, weight {smoothing:g}")


def _log_scale(axes: "matplotlib.axes.Axes") -> None:
    """Logarithmic where all values are positive, with plain numbers on an axis of less than two decades."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or drawn.min() <= 0:
        return
    axes.set_yscale("log")
    if drawn.max() < 100 * drawn.min():
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plain = ScalarFormatter()
        plain.set_scientific(drawn.min() < 1e-3 or drawn.max() >= 1e5)
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter("")


def knob_study(
    knob: Sequence[float] | Shaped[EitherArray, " n"],
    first: Sequence[float] | Shaped[EitherArray, " n"],
    second: Sequence[float] | Shaped[EitherArray, " n"],
    *,
    knob_name: str = "γ",
    first_name: str = "sample diversity",
    second_name: str = "high-frequency energy",
    first_real: float | None = None,
    second_real: float | None = None,
    marked: Sequence[float] = (),
    marked_name: str = "",
    log_knob: bool = False,
    title: str = "What the knob does",
) -> "matplotlib.figure.Figure":
    """Show two quantities of the samples against one setting, with the values of real data as levels.

    Args:
        knob: values of the setting.
        first: the first quantity at each of them.
        second: the second quantity.
        knob_name: name of the setting.
        first_name: name of the first quantity.
        second_name: name of the second quantity.
        first_real: the first quantity of real data.
        second_real: the second quantity of real data.
        marked: settings that stand out, as vertical lines.
        marked_name: what they are, for the legend.
        log_knob: whether the setting is drawn on a logarithmic axis, with its values as ticks.
        title: title of the figure.

    Returns:
        The figure, with two panels above each other.

    Raises:
        ValueError: lengths that differ, or a logarithmic axis for values that are not positive.
    """
    x, *quantities = (np.asarray(values, np.float64) for values in (knob, first, second))
    require(
        len(x) > 0 and all(len(values) == len(x) for values in quantities),
        f"one value is needed for each of {len(x)} settings, got {[len(v) for v in quantities]}",
    )
    require(not (log_knob and x.min() <= 0), f"a logarithmic axis needs positive settings, got {x.min()}")
    order = np.argsort(x)
    with style():
        new = figure(5.6, 5.0)
        panels: Any = new.subplots(2, 1, sharex=True)
        named = zip(panels, quantities, (first_name, second_name), (first_real, second_real), strict=True)
        for i, (axes, values, name, real) in enumerate(named):
            axes.plot(x[order], values[order], color=COLOURS[i], marker="o", markersize=5, label="samples")
            if real is not None:
                axes.axhline(real, color="#555555", linestyle=LINE_STYLES[1], linewidth=1.3, label="real data")
            for n, value in enumerate(marked):
                look: Any = {"color": "#999999", "linestyle": LINE_STYLES[2], "linewidth": 1.3, "zorder": 1}
                axes.axvline(value, label=marked_name if n == 0 else None, **look)
            if real is not None or marked:
                axes.legend(loc="best")
            axes.set(ylabel=name)
            axes.margins(y=0.12)
        if log_knob:
            panels[1].set_xscale("log")
            panels[1].set_xticks(x[order], [f"{value:g}" for value in x[order]])
            panels[1].minorticks_off()
        panels[1].set_xlabel(knob_name)
        new.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return new
