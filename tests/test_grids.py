import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids, schedules


class Path:
    """The protocol of a schedule around ``noise_level``; grids need no more."""

    def alpha(self, t):
        return 1 / jnp.sqrt(1 + self.noise_level(t) ** 2)

    def sigma(self, t):
        return self.alpha(t) * self.noise_level(t)

    def noise_level(self, t):
        raise NotImplementedError

    def time(self, noise_level):
        raise NotImplementedError

    def alpha_at(self, noise_level):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Flow(Path):
    def noise_level(self, t):
        return t / (1 - t)


@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """DDPM's linear betas; ``exact`` also offers the float64 levels of its steps."""

    num_steps: int = 1000

    def alphas_cumprod(self):
        scale = 1000 / self.num_steps
        return np.cumprod(1 - np.linspace(1e-4 * scale, 2e-2 * scale, self.num_steps))

    def exact(self):
        return np.sqrt(1 / self.alphas_cumprod() - 1)

    def noise_level(self, t):
        table = jnp.asarray(np.append(0.0, self.exact()))
        return table[jnp.round(t * self.num_steps).astype(int)]


@dataclasses.dataclass(frozen=True)
class LinearExact(Linear):
    def noise_levels(self):
        return self.exact()


@dataclasses.dataclass(frozen=True)
class ZeroTerminal(Linear):
    def noise_levels(self):
        root = np.sqrt(self.alphas_cumprod())
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        with np.errstate(divide="ignore"):
            return np.sqrt(1 - root**2) / root


GRIDS = {
    "karras": grids.karras,
    "exponential": grids.exponential,
    "polyexponential": lambda n: grids.polyexponential(n, rho=0.7),
    "vp": grids.vp,
    "flow": lambda n: grids.flow(n, 3.0),
    "playground": grids.playground,
    "strided": lambda n: grids.strided(LinearExact(), n),
    "zero_terminal": lambda n: grids.uniform_time(ZeroTerminal(), n),
} | {
    f"{kind.__name__}_{spacing}": lambda n, kind=kind, spacing=spacing: grids.uniform_time(kind(), n, spacing=spacing)
    for kind in (Flow, Linear, LinearExact)
    for spacing in ("trailing", "leading", "linspace")
}


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50, 1000])
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_falls_strictly_to_exactly_zero(name, n):
    sigmas = GRIDS[name](n)
    assert sigmas.dtype == jnp.float32 and sigmas.shape == (n + 1,)
    values = np.asarray(sigmas)
    assert np.isfinite(values).all() and (np.diff(values) < 0).all() and values[-1] == 0.0


def test_karras_has_the_published_values():
    wanted = [80, 42.415176, 21.108667, 9.723201, 4.066123, 1.501742, 0.469979, 0.116638, 0.020435, 0.002, 0]
    np.testing.assert_allclose(grids.karras(10), wanted, rtol=2e-5, atol=0)
    np.testing.assert_array_equal(grids.karras(1), [80, 0])


def test_log_grids():
    np.testing.assert_allclose(np.diff(np.log(grids.exponential(9)[:-1])), np.log(0.002 / 80) / 8, rtol=1e-5)
    np.testing.assert_array_equal(grids.exponential(9), grids.polyexponential(9, rho=1.0))
    np.testing.assert_allclose(grids.polyexponential(3, 0.01, 100.0, 2.0), [100, 0.1, 0.01, 0], rtol=1e-6)


def test_vp_is_the_table_1_formula():
    t = np.array([1.0, 0.5005, 0.001])
    wanted = np.sqrt(np.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1)
    np.testing.assert_allclose(grids.vp(3)[:-1], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "n", "steps"),
    [
        ("trailing", 4, [1000, 750, 500, 250]),
        ("trailing", 3, [1000, 667, 333]),
        ("leading", 4, [751, 501, 251, 1]),
        ("leading", 3, [667, 334, 1]),
        ("linspace", 4, [1000, 667, 334, 1]),
        ("trailing", 1, [1000]),
        ("linspace", 1, [1000]),
    ],
)
@pytest.mark.parametrize("kind", [Linear, LinearExact])
def test_discrete_schedules_are_visited_at_whole_steps(kind, spacing, n, steps):
    got = grids.uniform_time(kind(), n, spacing=spacing)[:-1]
    wanted = Linear().exact()[np.array(steps) - 1]
    np.testing.assert_allclose(got, wanted, rtol=1e-7 if kind is LinearExact else 1e-6)


@pytest.mark.parametrize("spacing", ("trailing", "leading", "linspace"))
@pytest.mark.parametrize("num_steps", [1, 2, 10, 250, 1000])
def test_as_many_steps_as_the_schedule_visit_each_once(spacing, num_steps):
    schedule = LinearExact(num_steps) if num_steps >= 250 else LinearExact(1000)
    got = np.asarray(grids.uniform_time(schedule, schedule.num_steps, spacing=spacing))
    np.testing.assert_array_equal(got[:-1], schedule.exact()[::-1].astype(np.float32))


def test_schedules_are_read_in_float64():
    got = np.asarray(grids.uniform_time(Flow(), 1000))
    t = np.arange(999, 0, -1) / 1000
    np.testing.assert_array_equal(got[1:-1], (t / (1 - t)).astype(np.float32))


def test_strided_matches_improved_ddpm():
    sigmas = np.asarray(grids.strided(LinearExact(), 250), np.float64)[:-1][::-1]
    abar = 1 / (1 + sigmas**2)
    np.testing.assert_allclose(abar[[0, 124, 249]], [0.9999, 0.0801878, 4.0358e-5], rtol=2e-5)
    parts = grids.strided(LinearExact(), [10, 20, 1])
    levels = Linear().exact()
    firsts = [levels[999], levels[666], levels[334], levels[333], levels[0]]
    for index, level in zip([0, 1, 20, 21, 30], firsts, strict=True):
        np.testing.assert_allclose(parts[index], level, rtol=1e-6)


def test_infinite_ends_start_at_a_finite_sigma():
    assert float(grids.flow(4)[0]) == 80.0
    assert float(grids.flow(100)[0]) == 198.0  # twice the second
    assert float(grids.flow(4, max_sigma=500.0)[0]) == 500.0
    np.testing.assert_allclose(grids.flow(4)[1:], [3, 1, 1 / 3, 0], rtol=1e-7)
    np.testing.assert_allclose(grids.flow(4, shift=3.0)[1:], [9, 3, 1, 0], rtol=1e-7)
    np.testing.assert_allclose(grids.uniform_time(Flow(), 4), grids.flow(4), rtol=1e-6)
    a = (5 - np.arange(1, 5)) / 5
    np.testing.assert_allclose(grids.playground(5)[1:-1], a / (1 - a), rtol=1e-6)
    levels = ZeroTerminal().noise_levels()
    assert np.isinf(levels[-1])
    got = grids.uniform_time(ZeroTerminal(), 1000)
    np.testing.assert_allclose(got[0], 2 * levels[-2], rtol=1e-6)
    assert float(grids.uniform_time(Linear(), 5, max_sigma=100.0)[0]) == 100.0
    assert float(grids.uniform_time(Linear(), 5, max_sigma=1e3)[0]) == pytest.approx(157.4, abs=0.1)


def test_explicit_is_verbatim_or_raises():
    given = [7.5, 3.25, 0.5, 0.0]
    np.testing.assert_array_equal(grids.explicit(given), given)
    np.testing.assert_array_equal(grids.explicit(np.array([2.0, 1.0]), final_zero=False), [2.0, 1.0])
    for bad, words in [
        ([3.0, 1.0], "append 0.0"),
        ([3.0, 3.0, 0.0], "decrease strictly"),
        ([1.0, 3.0, 0.0], "decrease strictly"),
        ([1.0, 0.0, 0.0], "decrease strictly"),
        ([1.0 + 1e-9, 1.0, 0.0], "float32"),
        ([np.nan, 1.0, 0.0], "finite"),
        ([np.inf, 1.0, 0.0], "finite"),
        ([0.0], "at least 2"),
        (np.array([[1.0, 0.0]]), "at least 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            grids.explicit(bad)
    with pytest.raises(ValueError, match="negative"):
        grids.explicit([1.0, -1.0], final_zero=False)


def test_start_at_cuts_a_grid():
    grid = grids.karras(10)
    np.testing.assert_array_equal(grids.start_at(grid, 80.0), grid)
    np.testing.assert_array_equal(grids.start_at(grid, float(grid[3])), grid[3:])
    np.testing.assert_array_equal(grids.start_at(grid, 5.0), np.append(np.float32(5.0), grid[4:]))
    for bad in (81.0, 0.0, -1.0):
        with pytest.raises(ValueError, match="not on the grid"):
            grids.start_at(grid, bad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: grids.karras(0), "n >= 1"),
        (lambda: grids.flow(0), "n >= 1"),
        (lambda: grids.vp(0), "n >= 1"),
        (lambda: grids.karras(5, 3.0, 2.0), "below sigma_max"),
        (lambda: grids.exponential(5, 0.0), "sigma_min=0.0"),
        (lambda: grids.karras(5, rho=0.0), "rho"),
        (lambda: grids.vp(5, time_min=1.0), "time_min"),
        (lambda: grids.flow(5, 0.0), "shift"),
        (lambda: grids.flow(50, max_sigma=40.0), "fewer steps"),
        (lambda: grids.uniform_time(Linear(), 1001), "n <= 1000"),
        (lambda: grids.uniform_time(Linear(), 10, spacing="trailling"), "choose one of trailing"),
        (lambda: grids.strided(Flow(), 10), "uniform_time"),
        (lambda: grids.strided(Linear(), [10, 501]), "from 1 to 500"),
        (lambda: grids.strided(Linear(), []), "empty"),
    ],
)
def test_bad_values_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_grids_are_concrete_inside_jit():
    @jax.jit
    def last_but_one():
        return float(np.asarray(grids.uniform_time(Flow(), 4))[-2]) + jnp.zeros(())

    assert float(last_but_one()) == pytest.approx(1 / 3)


@pytest.mark.parametrize("spacing", ("trailing", "leading", "linspace"))
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Linear(),
        schedules.Cosine(),
        schedules.ZeroTerminalSNR(base=schedules.Linear()),
        schedules.Laplace(),
        schedules.VP(),
        schedules.VE(),
        schedules.EDM(),
        schedules.RectifiedFlow(),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_schedules_of_the_library_have_grids(schedule, spacing):
    for n in (1, 7, 1000):
        values = np.asarray(grids.uniform_time(schedule, n, spacing=spacing))
        assert np.isfinite(values).all() and (np.diff(values) < 0).all() and values[-1] == 0.0


def test_lists_are_stretched_in_log_sigma_and_end_at_0():
    steps = np.asarray(grids.resample([16.0, 4.0, 1.0, 0.25], 6), np.float64)
    np.testing.assert_allclose(steps, [16, 8, 4, 2, 1, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(grids.resample([16.0, 4.0, 1.0], 2), [16, 4, 0], rtol=1e-6)
    assert grids.resample([16.0, 4.0], 1).tolist() == [16.0, 0.0]
    for model in ("sd1", "sdxl", "svd"):
        ten = np.asarray(grids.align_your_steps(10, model))
        assert ten.shape == (11,) and ten[-1] == 0
        np.testing.assert_allclose(np.asarray(grids.align_your_steps(20, model))[:-1:2], ten[:-1], rtol=1e-5)
    with pytest.raises(ValueError, match="model='sd3' is not known: choose one of sd1, sdxl, svd"):
        grids.align_your_steps(10, "sd3")
    with pytest.raises(ValueError, match="must fall and be positive"):
        grids.resample([1.0, 2.0], 4)
