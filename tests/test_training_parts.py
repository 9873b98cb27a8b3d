"""What a train step can carry beside parameters: a loss with memory, further averages, a projection."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import config as C
from jaxdiff import ema, factory, training
from jaxdiff.typing import StagedLoss

KEY = jax.random.key(0)
PARAMS = {"w": jnp.array([3.0, 4.0])}
BATCH = {"x": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)}


def plain(params, batch, key):
    del key
    return jnp.square(batch["x"] @ params["w"] - 1.0).mean(), {}


def seeing(params, rows, key):
    value, metrics = plain(params, rows, key)
    return value, metrics, jnp.square(rows["x"] @ params["w"] - 1.0)


def remember(memory, seen):
    """Counts its calls, and keeps the last loss."""
    return {"calls": memory["calls"] + 1, "last": jnp.mean(seen)}


LOSS = StagedLoss(
    draw=lambda batch, key, memory: batch,
    evaluate=seeing,
    initial={"calls": jnp.int32(0), "last": jnp.float32(-1)},
    update=remember,
)


def test_a_loss_remembers_and_a_bad_step_leaves_no_trace():
    tx, _ = training.make_optimizer(peak_lr=0.1)
    state = training.init_state(PARAMS, tx, loss=LOSS, batch=BATCH)
    assert float(state.memory["last"]) == -1
    step = training.make_train_step(LOSS, tx, ema_decay=0.9)
    state = step(state, BATCH, KEY)
    assert int(state.memory["calls"]) == 1 and float(state.memory["last"]) == pytest.approx((4 + 9) / 2)
    before = float(state.memory["last"])
    state = step(state, {"x": BATCH["x"] * np.nan}, KEY)
    assert int(state.memory["calls"]) == 1 and float(state.memory["last"]) == before and int(state.skipped) == 1
    state = step(state, BATCH, KEY)
    assert int(state.memory["calls"]) == 2
    assert float(training.read_tally(state)["loss"]) == pytest.approx((6.5 + float(state.memory["last"])) / 2)


def test_tracks_are_averages_of_their_own_profile():
    tx, _ = training.make_optimizer(peak_lr=0.1)
    tracks = {"slow": ema.power(0.1), "copy": ema.constant(0.0)}
    state = training.init_state(PARAMS, tx, loss=plain, batch=BATCH, tracks=list(tracks))
    step = training.make_train_step(plain, tx, ema_decay=ema.power(0.05), tracks=tracks)
    alone = training.init_state(PARAMS, tx, loss=plain, batch=BATCH)
    alone_step = training.make_train_step(plain, tx, ema_decay=ema.power(0.1))
    for _ in range(5):
        state, alone = step(state, BATCH, KEY), alone_step(alone, BATCH, KEY)
    np.testing.assert_array_equal(state.tracks["copy"]["w"], state.params["w"])
    np.testing.assert_array_equal(state.tracks["slow"]["w"], alone.ema_params["w"])
    assert float(jnp.abs(state.tracks["slow"]["w"] - state.ema_params["w"]).max()) > 1e-3


def test_the_projection_holds_after_every_update_and_in_the_average():
    def unit(params):
        return jax.tree.map(lambda w: w / jnp.linalg.norm(w), params)

    tx, _ = training.make_optimizer(peak_lr=0.1)
    state = training.init_state(unit(PARAMS), tx, loss=plain, batch=BATCH)
    step = training.make_train_step(plain, tx, ema_decay=ema.constant(0.0), project=unit)
    for _ in range(4):
        state = step(state, BATCH, KEY)
        assert float(jnp.linalg.norm(state.params["w"])) == pytest.approx(1.0, abs=1e-6)
    assert float(jnp.abs(state.params["w"] - unit(PARAMS)["w"]).max()) > 1e-3
    np.testing.assert_array_equal(state.ema_params["w"], state.params["w"])


def test_the_inverse_root_falls_after_its_start():
    _, rate = training.make_optimizer(peak_lr=1.0, warmup_steps=4, schedule="inverse_sqrt", decay_start=100)
    np.testing.assert_allclose(
        [float(rate(jnp.int32(n))) for n in (0, 3, 100, 400, 10_000)], [0.25, 1.0, 1.0, 0.5, 0.1], rtol=1e-6
    )
    with pytest.raises(ValueError, match="decay_start >= 1; got None"):
        training.make_optimizer(peak_lr=1.0, schedule="inverse_sqrt")
    with pytest.raises(ValueError, match="belongs to inverse_sqrt"):
        C.AdamConfig(decay_start=10)


def test_averages_of_a_configuration():
    def averages(**fields):
        return factory.averages(C.Config(name="x", optim=C.AdamConfig(**fields), train=C.TrainConfig(batch_size=100)))

    n = jnp.int32(50)
    first, others = averages(ema_stds=(0.05, 0.1))
    assert list(others) == ["std_0.1"]
    assert float(first(n)) == float(ema.power(0.05)(n)) and float(others["std_0.1"](n)) == float(ema.power(0.1)(n))
    half, none = averages(ema_half_life=1000.0)
    assert not none and float(half(n)) == pytest.approx(1 - 0.5 ** (100 / min(1000, 0.05 * 100 * 50)), rel=1e-5)
    with pytest.raises(ValueError, match="ema_half_life is 5.0: .* or ema_stds alone"):
        C.AdamConfig(ema_half_life=5.0, ema_stds=(0.05,))
    with pytest.raises(ValueError, match=r"different widths in \(0, 0.28\]"):
        C.AdamConfig(ema_stds=(0.05, 0.5))


def test_optimizer_configurations_are_those_of_optax_and_refuse_bad_values():
    params, grads = {"w": jnp.full((3,), 2.0)}, {"w": jnp.arange(3.0)}
    for config, theirs in (
        (training.AdamConfig(b1=0.8, b2=0.9), optax.adam(0.1, b1=0.8, b2=0.9)),
        (training.AdamWConfig(b1=0.8, weight_decay=0.3), optax.adamw(0.1, b1=0.8, weight_decay=0.3)),
    ):
        ours = config.make(lambda n: 0.1)
        updates = [tx.update(grads, tx.init(params), params)[0]["w"] for tx in (ours, theirs)]
        np.testing.assert_array_equal(*updates)
    for config, name, value in (
        (training.AdamConfig, "b1", 1.0),
        (training.AdamWConfig, "b2", -0.1),
        (training.AdamWConfig, "weight_decay", -1.0),
    ):
        with pytest.raises(ValueError, match=f"optim.{name} is {value}"):
            config(**{name: value})
