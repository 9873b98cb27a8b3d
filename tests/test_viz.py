"""Figures say what they show, show what they say, and disturb no one."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdiff import outputs, schedules, viz
from jaxdiff.viz import style

RNG = np.random.default_rng(0)


def pixels(figure):
    """Draw a figure and return what is seen."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def texts(figure):
    """All texts of a figure that are not empty."""
    from matplotlib.text import Text

    return {text.get_text() for text in figure.findobj(Text)} - {""}


def shown_images(figure):
    """The images of a figure as arrays, by axes."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def images(count=3, size=8, channels=1):
    return RNG.uniform(-1, 1, (count, size, size, channels)).astype(np.float32)


def test_importing_the_library_imports_no_plotting():
    heavy = "matplotlib", "PIL", "sklearn", "tyro"
    code = (
        "import sys, jaxdiff, jaxdiff.viz, jaxdiff.outputs, jaxdiff.metrics; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_figures_leave_no_trace_in_matplotlib():
    import matplotlib

    before = dict(matplotlib.rcParams)
    pixels(viz.embedding_map(positions=np.arange(10), dim=8))
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_forward_strip_shows_the_path_from_data_to_one_noise():
    x0 = images(2)
    figure = viz.forward_strip(x0, schedules.VP(), columns=5, seed=3, title="Forward")
    shown = np.array(shown_images(figure)).reshape(2, 5, 8, 8)
    clean = (x0[..., 0] + 1) / 2
    np.testing.assert_allclose(shown[:, 0], clean, atol=1e-6)
    eps = np.random.default_rng(3).standard_normal(x0.shape)[..., 0]
    np.testing.assert_allclose(shown[:, -1], (np.clip(eps, -1, 1) + 1) / 2, atol=0.01)
    distances = [np.abs(shown[:, i] - clean).mean() for i in range(5)]
    assert distances == sorted(distances)
    assert {"Forward", "t = 0\nσ/α = 0"} <= texts(figure) and pixels(figure).std() > 10


def test_forward_strip_counts_the_steps_of_discrete_schedules_and_bears_infinite_noise():
    figure = viz.forward_strip(images(1), schedules.Linear(num_steps=300), columns=4)
    assert {text.split("\n")[0] for text in texts(figure)} >= {"step 0", "step 100", "step 200", "step 300"}
    assert "t = 1\nσ/α = ∞" in texts(viz.forward_strip(images(1), schedules.RectifiedFlow(), columns=2))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        viz.forward_strip(images(1), schedules.VP(), times=[0.0, 1.5])


def test_unit_scale_gives_unit_variance_at_every_noise_level():
    sigmas = np.array([80.0, 1.0, 0.1, 0.0])
    x = RNG.normal(size=(1, 4000)) + sigmas[:, None] * RNG.normal(size=(4, 4000))
    np.testing.assert_allclose(viz.unit_scale(x, sigmas).std(axis=1), 1.0, atol=0.05)
    np.testing.assert_array_equal(viz.unit_scale(x, sigmas)[3], x[3])
    with pytest.raises(ValueError, match="one sigma is needed for each of 4 states"):
        viz.unit_scale(x, sigmas[:3])


def test_denoiser_pairs_name_their_rows_and_amounts():
    noisy, clean = images(4), images(4)
    figure = viz.denoiser_pairs(noisy, clean, clean=clean, amounts=np.array([0.1, 0.5, 1, 20]), title="Pairs")
    assert {"clean", "input", "output", "σ = 0.1", "σ = 20", "Pairs"} <= texts(figure)
    np.testing.assert_allclose(np.array(shown_images(figure)[4:8]), (noisy[..., 0] + 1) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="one length"):
        viz.denoiser_pairs(noisy, clean[:2])


def trajectory(steps=6, count=4, size=8, channels=1):
    sigmas = np.append(np.geomspace(20, 0.1, steps), 0.0).astype(np.float32)
    x0 = images(count, size, channels)
    noise = RNG.standard_normal(x0.shape).astype(np.float32)
    return x0 + sigmas[:, None, None, None, None] * noise, sigmas, x0


def test_reverse_strip_shows_first_and_last_states_and_the_estimates():
    states, sigmas, x0 = trajectory()
    estimates = np.broadcast_to(x0, (6, *x0.shape))
    figure = viz.reverse_strip(states, sigmas, denoised=estimates, columns=3, samples=2)
    shown = np.array(shown_images(figure)).reshape(2, 2, 3, 8, 8)
    first = np.clip(states[0, 1, ..., 0] / np.sqrt(1 + sigmas[0] ** 2), -1, 1)
    np.testing.assert_allclose(shown[1, 0, 0], (first + 1) / 2, atol=1e-5)
    np.testing.assert_allclose(shown[:, 0, 2], (x0[:2, ..., 0] + 1) / 2, atol=1e-5)
    np.testing.assert_allclose(shown[:, 1], np.broadcast_to((x0[:2, None, ..., 0] + 1) / 2, (2, 3, 8, 8)), atol=1e-5)
    expected = {"state", "estimate", "step 0\nσ = 20", "step 6\nσ = 0", "Reverse process, 6 steps"}
    assert expected <= texts(figure) and pixels(figure).std() > 10


def test_reverse_strip_refuses_what_does_not_fit():
    states, sigmas, _ = trajectory()
    with pytest.raises(ValueError, match="cannot choose 1 of 7"):
        viz.reverse_strip(states, sigmas, columns=1)
    with pytest.raises(ValueError, match="one state less"):
        viz.reverse_strip(states, sigmas, denoised=states[:3])


@pytest.mark.parametrize("channels", [1, 3])
def test_reverse_gif_has_one_frame_for_each_state_and_loops(tmp_path, channels):
    states, sigmas, x0 = trajectory(channels=channels)
    path = viz.reverse_gif(tmp_path / "a.gif", states, sigmas, hold_last=1.0, scale=1, metadata={"seed": 1})
    with Image.open(path) as picture:
        assert picture.n_frames == 7 and picture.info["loop"] == 0
        durations = []
        for i in range(7):
            picture.seek(i)
            durations.append(picture.info["duration"])
    assert sum(durations) == pytest.approx(1000 * 7 / 30 + 1000, abs=5)
    frames = viz.reverse_frames(states, sigmas, scale=1, columns=2)
    np.testing.assert_array_equal(frames[-1], outputs.image_grid(np.rint(127.5 * x0 + 127.5).astype(np.uint8), scale=1))
    noise = frames[0][frames[0] < 255]
    assert noise.std() > 60  # noise of sigma 20 is neither flat grey nor black and white only
    assert np.mean((noise > 0) & (noise < 255)) > 0.6


def test_schedule_curves_draw_each_schedule_in_three_panels():
    many = {
        "linear": schedules.Linear(),
        "cosine": schedules.Cosine(num_steps=50),
        "flow": schedules.RectifiedFlow(),
    }
    figure = viz.schedule_curves(many, steps=100)
    betas, alpha_bars, log_snr = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    np.testing.assert_allclose(betas.lines[0].get_ydata(), schedules.Linear().betas())
    np.testing.assert_allclose(alpha_bars.lines[1].get_ydata(), schedules.Cosine(num_steps=50).alphas_cumprod())
    t = np.arange(1, 101) / 100
    np.testing.assert_allclose(alpha_bars.lines[2].get_ydata(), (1 - t) ** 2 / ((1 - t) ** 2 + t**2), atol=1e-6)
    x, y = log_snr.lines[2].get_data()  # the end of the flow, where no signal is left, is not drawn
    np.testing.assert_allclose(y, 2 * np.log((1 - x) / x), atol=1e-3)
    assert len(x) == 99
    assert {"linear", "cosine", "flow", "Signal kept, ᾱ", "t (0 data, 1 noise)"} <= texts(figure)
    looks = {(line.get_color(), str(line.get_linestyle())) for line in betas.lines}
    assert len(looks) == 3 and pixels(figure).std() > 10


def test_up_to_28_lines_have_looks_of_their_own():
    from jaxdiff.viz.curves import _look

    assert len({str(_look(i)) for i in range(28)}) == 28


def test_sinusoid_has_the_published_values():
    embedding = viz.sinusoid(np.array([0, 1, 7]), 6, max_period=1000.0)
    np.testing.assert_allclose(embedding[0], [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(embedding[1, :3], np.sin([1, 0.1, 0.01]))
    np.testing.assert_allclose(embedding[2, 3:], np.cos([7, 0.7, 0.07]))
    np.testing.assert_allclose((embedding**2).sum(axis=1), 3)
    with pytest.raises(ValueError, match="even"):
        viz.sinusoid(np.arange(3), 5)


def test_embedding_map_shows_the_embedding():
    figure = viz.embedding_map(dim=16, positions=np.arange(40))
    np.testing.assert_array_equal(shown_images(figure)[0], viz.sinusoid(np.arange(40), 16))
    assert {"step", "channel of the embedding (8 sines, 8 cosines)"} <= texts(figure)
    own = RNG.normal(size=(5, 3))
    drawn = viz.embedding_map(own).axes[0].images[0]
    np.testing.assert_array_equal(drawn.get_array(), own)
    assert drawn.norm.vmax == -drawn.norm.vmin == np.abs(own).max()  # zero is white


def write_log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_read_log_keeps_the_later_of_two_lines_and_skips_one_being_written(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        [
            {"step": 10, "loss": 1.0, "note": "text"},
            {"step": 20, "loss": 9.0, "grad_norm": 2.0},
            {"step": 20, "loss": 0.5},
            {"step": 30, "loss": None},
        ],
    )
    path.write_text(path.read_text() + '{"step": 40, "lo')
    log = viz.read_log(path)
    assert set(log) == {"loss", "grad_norm"}
    np.testing.assert_array_equal(log["loss"], [[10, 20], [1.0, 0.5]])
    np.testing.assert_array_equal(log["grad_norm"], [[20], [2.0]])
    path.write_text('{"step": 1, "loss": 1}\nnonsense\n{"step": 2, "loss": 1}\n')
    with pytest.raises(ValueError, match="line 2 is no JSON object with a step: 'nonsense'"):
        viz.read_log(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no logged numbers"):
        viz.read_log(path)


def test_smoothing_has_no_bias_at_the_start_and_steps_over_nan():
    np.testing.assert_allclose(style.smooth(np.full(5, 3.0), 0.9), 3.0)
    np.testing.assert_allclose(style.smooth(np.array([np.nan, 1.0, np.nan, 4.0]), 0.5), [np.nan, 1, 1, 3])
    np.testing.assert_array_equal(style.smooth(np.arange(4.0), 0.0), np.arange(4.0))


def log_of(quantities, steps=40):
    x = np.arange(steps, dtype=float)
    return {name: (x, (i + 1) * np.exp(-x / 20) + 0.1) for i, name in enumerate(quantities)}


def test_loss_curves_have_a_panel_for_what_was_logged():
    bins = [f"loss_bin_{i}" for i in range(11)]
    figure = viz.loss_curves(log_of(["loss", "grad_norm", *bins, "loss_bin_total"]), smoothing=0.5)
    loss, norm, by_level = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Loss",
        "Gradient norm",
        "Loss by noise level",
    ]
    raw, average = (line.get_ydata() for line in loss.lines)
    np.testing.assert_allclose(average, style.smooth(raw, 0.5))
    assert len(by_level.lines) == 11 and by_level.get_yscale() == "log"
    labels = [line.get_label() for line in by_level.lines]  # in the order of numbers, not of names
    assert labels == ["0 (least noise)", *map(str, range(1, 10)), "10 (most noise)"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"} and pixels(figure).std() > 10
    assert len(viz.loss_curves(log_of(["loss"])).axes) == 1
    with pytest.raises(ValueError, match="no 'loss', only mse"):
        viz.loss_curves(log_of(["mse"]))


def test_loss_curves_name_noise_levels_and_bear_empty_bins_and_negative_losses():
    log = log_of(["loss", "loss_bin_0", "loss_bin_1", "loss_bin_2"])
    log["loss_bin_1"] = (log["loss_bin_1"][0], np.full(40, np.nan))  # no example fell into it
    log["loss"] = (log["loss"][0], log["loss"][1] - 0.5)
    figure = viz.loss_curves(log, bin_edges=(0.3, 3))
    assert {"0 to 0.3", "0.3 to 3", "3 to ∞", "noise level σ"} <= texts(figure)
    assert figure.axes[0].get_yscale() == "linear" and pixels(figure).std() > 10
    with pytest.raises(ValueError, match="1 bin edges separate 2 bins, but bin 2 was logged"):
        viz.loss_curves(log, bin_edges=(0.3,))


def test_knob_study_sorts_the_knob_and_draws_the_real_values():
    figure = viz.knob_study([1.0, 0.5, 2.0], [3, 2, 4], [30, 20, 40], first_real=2.5, knob_name="gamma")
    upper, lower = figure.axes
    np.testing.assert_array_equal(upper.lines[0].get_xydata(), [[0.5, 2], [1, 3], [2, 4]])
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), [20, 30, 40])
    assert upper.lines[1].get_ydata()[0] == 2.5 and len(lower.lines) == 1
    assert {"gamma", "sample diversity", "high-frequency energy", "real data"} <= texts(figure)
    with pytest.raises(ValueError, match="positive settings"):
        viz.knob_study([0.0, 1.0], [1, 2], [1, 2], log_knob=True)


def test_noise_histogram_states_means_and_deviations():
    true = RNG.normal(15, 5, (200, 50))
    figure = viz.noise_histogram(true, 15 + 0.2 * (true - 15))
    legend = {text for text in texts(figure) if "std" in text}
    assert legend == {
        f"true: mean {true.mean():.3g}, std {true.std():.3g}",
        f"predicted: mean 15, std {true.std() / 5:.3g}",
    }
    edges = np.histogram_bin_edges(true, 60)
    heights = figure.axes[0].patches[0].get_data().values
    assert (heights * np.diff(edges)).sum() == pytest.approx(1.0)  # a density
    with pytest.raises(ValueError, match="predicted must hold finite values"):
        viz.noise_histogram(true, true * np.nan)


def test_scatter_counts_what_lies_outside_and_keeps_equal_scales():
    data, samples = RNG.uniform(-1, 1, (300, 2)), RNG.uniform(-1, 1, (200, 2))
    samples[:4] = 100
    figure = viz.scatter_2d(data, samples)
    left, right = figure.axes
    assert right.get_title(loc="left") == "Samples (200), data in grey" and "4 lie outside" in texts(figure)
    np.testing.assert_array_equal(right.collections[1].get_offsets(), samples)
    np.testing.assert_array_equal(left.collections[0].get_offsets(), data)
    assert left.get_xlim() == right.get_xlim() and left.get_aspect() == right.get_aspect() == 1
    assert abs(left.get_xlim()[1]) < 2 and pixels(figure).std() > 10


def test_sample_grid_labels_each_image():
    figure = viz.sample_grid(images(5), columns=3, labels=list("abcde"))
    assert set("abcde") <= texts(figure) and len(shown_images(figure)) == 5
    with pytest.raises(ValueError, match="do not fit"):
        viz.sample_grid(images(5), labels=["a"])


def test_images_that_are_no_pictures_are_refused():
    with pytest.raises(ValueError, match="got int64"):
        style.displayable(np.ones((1, 2, 2, 1), np.int64))
    with pytest.raises(ValueError, match="2 values that are not finite"):
        style.displayable(np.array([np.nan, np.inf, 0.0]).reshape(1, 3, 1, 1))
    np.testing.assert_allclose(style.displayable(np.array([-2.0, 0.0, 2.0]).reshape(1, 3, 1, 1)).ravel(), [0, 0.5, 1])
