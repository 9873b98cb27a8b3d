"""The training step as one jitted pure function, its state, and the numbers it logs.

The state holds arrays only, the running sums of the metrics included, so that a run that is killed and
resumed logs the same numbers as one that was not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxdiff import ema
from jaxdiff.training.optimizers import make_optimizer
from jaxdiff.typing import Batch, Loss, Mean, Metrics, Params, StagedLoss, require

__all__ = ["TrainState", "init_state", "make_optimizer", "make_train_step", "num_updates"]


class TrainState(NamedTuple):
    """Everything that a run is, as arrays.

    Attributes:
        step: int32, batches so far, whether their updates were applied or skipped.
        params: the parameters being trained.
        opt_state: state of the optimizer.
        ema_params: float32 average of the parameters.
        skipped: int32, steps skipped because loss, gradient or update was not finite.
        skipped_in_row: int32, the same since the last good step.
        tally: running sums of the metrics since ``reset_tally``.
        memory: what a loss with memory keeps between steps, else ().
        tracks: further float32 averages by name, each with its own profile.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: PyTree
    ema_params: Params
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]
    tally: dict[str, Mean]
    memory: PyTree = ()
    tracks: dict[str, Params] = {}


def _staged(loss: Loss | StagedLoss) -> StagedLoss:
    """A loss that draws by itself, as one whose only stage is the second."""
    if isinstance(loss, StagedLoss):
        return loss

    def draw(batch: Batch, key: Array, memory: PyTree) -> Batch:
        del key, memory
        return batch

    def evaluate(params: Params, rows: Batch, key: Array) -> tuple[Array, Metrics, PyTree]:
        return *loss(params, rows, key), ()

    return StagedLoss(draw=draw, evaluate=evaluate)


def _as_mean(metric: Array | Mean) -> Mean:
    if isinstance(metric, Mean):
        return Mean(metric.total.astype(jnp.float32), metric.count.astype(jnp.float32))
    metric = jnp.asarray(metric, jnp.float32)
    return Mean(metric, jnp.ones_like(metric))


def global_norm(tree: Params) -> Float[Array, ""]:
    """Root of the sum of squares of all floating leaves, summed in float32."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.sqrt(sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves), jnp.float32(0.0)))


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    loss: Loss | StagedLoss,
    batch: Batch,
    tracks: Sequence[str] = (),
) -> TrainState:
    """Build the state before the first step.

    ``params`` is copied, because the train step reuses the memory of its state. For a target to restore
    into, call it under ``jax.eval_shape``.

    Args:
        params: initial parameters.
        tx: the optimizer that the train step will use.
        loss: the loss that the train step will use; only its shapes are evaluated.
        batch: a batch, or ``jax.ShapeDtypeStruct`` in its place.
        tracks: names of the further averages that the train step will keep.

    Returns:
        A state at step 0 with an empty tally.

    Raises:
        ValueError: the loss returns a metric under a name that the train step uses.
    """
    metrics: Metrics
    staged = _staged(loss)

    def whole(params: Params, batch: Batch, key: Array) -> Any:
        return staged.evaluate(params, staged.draw(batch, key, staged.initial), key)

    _, metrics, _ = jax.eval_shape(whole, params, batch, jax.random.key(0))
    taken = sorted(set(metrics) & {"loss", "grad_norm", "param_norm", "ema_gap", "step", "skipped", "updates"})
    if taken:
        raise ValueError(f"The loss returned a metric named {taken[0]!r}, which the train step uses: rename it.")
    shapes = {name: m.total.shape if isinstance(m, Mean) else m.shape for name, m in metrics.items()}
    shapes |= {"loss": (), "grad_norm": ()}
    tally = {name: Mean(jnp.zeros(s, jnp.float32), jnp.zeros(s, jnp.float32)) for name, s in shapes.items()}

    def average() -> Params:
        # A copy for each: two leaves may not share a buffer that will be donated.
        return jax.tree.map(
            lambda x: jnp.array(x, jnp.float32 if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else None, copy=True),
            params,
        )

    copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return TrainState(
        step=zeros[0],
        params=copy,
        opt_state=tx.init(copy),
        ema_params=average(),
        skipped=zeros[1],
        skipped_in_row=zeros[2],
        tally=tally,
        memory=jax.tree.map(lambda x: jnp.array(x, copy=True), staged.initial),
        tracks={name: average() for name in tracks},
    )


def num_updates(state: TrainState) -> Int[Array, ""]:
    """Optimizer updates really applied: the argument of the learning-rate schedule for the next one.

    Args:
        state: a train state.

    Returns:
        int32 scalar: ``step - skipped``.
    """
    return state.step - state.skipped


def _select(keep: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jax.lax.select(keep, n, o), new, old)


def _interleaved(rows: PyTree, parts: int) -> PyTree:
    """Split (batch, ...) into (parts, batch / parts, ...); part i holds rows i, i + parts, ...

    In this order each device finds its own rows in every part, when the batch is split over devices.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), rows)


def _in_order(seen: PyTree) -> PyTree:
    """Inverse of ``_interleaved``."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), seen)


def _gradient(
    loss: StagedLoss, params: Params, rows: PyTree, key: Array, parts: int
) -> tuple[Array, dict[str, Mean], PyTree, Params]:
    """Loss, metrics, what was seen of each row, and gradient; of one part after another, averaged."""

    def objective(params: Params, rows: PyTree, key: Array) -> tuple[Array, tuple[Metrics, PyTree]]:
        value, metrics, seen = loss.evaluate(params, rows, key)
        return value, (metrics, seen)

    compute = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        (value, (metrics, seen)), grads = compute(params, rows, key)
        return value, {name: _as_mean(metric) for name, metric in metrics.items()}, seen, grads

    def add(total: Any, part: tuple[Any, Array]) -> tuple[Any, Any]:
        (value, (metrics, seen)), grads = compute(params, *part)
        shares = {name: m if isinstance(m, Mean) else m / parts for name, m in metrics.items()}
        weighed = (value / parts, shares, jax.tree.map(lambda g: g / parts, grads))
        return jax.tree.map(jnp.add, total, weighed), seen

    pieces = (_interleaved(rows, parts), jax.random.split(key, parts))
    (value, (metrics, _)), grads = jax.eval_shape(compute, params, *jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, dict(metrics), grads))
    (value, metrics, grads), seen = jax.lax.scan(add, zeros, pieces)
    return value, {name: _as_mean(metric) for name, metric in metrics.items()}, _in_order(seen), grads


def make_train_step(
    loss: Loss | StagedLoss,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float | ema.Profile,
    tracks: Mapping[str, ema.Profile] = {},  # noqa: B006 (never changed)
    project: Callable[[Params], Params] | None = None,
    micro_batches: int = 1,
    steps_per_call: int = 1,
    fetch: Callable[[PyTree, PyTree], Batch] | None = None,
    state_sharding: PyTree = None,
    compiler_options: Mapping[str, str | bool | int | float] | None = None,
) -> Callable[[TrainState, PyTree, Key[Array, ""]], TrainState]:
    """Make the train step: one jitted function whose state argument is donated.

    ::

        k = fold_in(key, step);   l, g = value_and_grad(loss)(params, batch, k)
        params, opt_state <- tx(g);   params <- project(params)
        ema <- w params + (1 - w) ema;   tally += metrics

    When the loss, the gradient norm or the norm of the new parameters is not finite, parameters, optimizer
    state, average and tally stay as they were; ``skipped`` counts it and ``step`` goes on. Nothing waits
    for the device. ``grad_norm`` is that of the whole batch, before clipping.

    Args:
        loss: ``(params, batch, key) -> (scalar, metrics)``, or one in stages.
        tx: the optimizer, the same that ``init_state`` was given.
        ema_decay: limit of the decay with warm-up, in [0, 1), or a profile from ``jaxdiff.ema``.
        tracks: profiles of further averages, by the names that ``init_state`` was given.
        project: brings the parameters back to where they belong after every update, such as EDM2's forced weight
            normalisation; the optimizer's own state does not know of it.
        micro_batches: parts of the batch whose gradients are computed one after another and averaged: activations of
            one part are held at a time. Noise is drawn for the whole batch, so that the result is that of 1 part up
            to rounding; only dropout inside the network differs. Needs a loss in stages, and a batch divisible by it.
        steps_per_call: steps that one call takes; the arrays of ``batch`` then have an axis of that length first.
        fetch: ``(store, item) -> batch``, when ``batch`` is (store, item): data that stay on the device and which of
            them to take. With several steps in a call only the arrays of the item have the additional axis.
        state_sharding: sharding of the new state, one or a tree; None lets the compiler choose.
        compiler_options: passed to ``jax.jit``; see ``jaxdiff.runtime.compilation.compiler_options``.

    Returns:
        ``step(state, batch, key) -> state``. ``key`` is the key of the run, the same at every step. The
        ``state`` passed in can not be used afterwards.

    Raises:
        ValueError: ``ema_decay`` or a count out of range, or micro-batches of a loss that is not in stages.
    """
    require(
        min(micro_batches, steps_per_call) >= 1,
        f"micro_batches and steps_per_call must be at least 1; got {micro_batches} and {steps_per_call}.",
    )
    require(
        micro_batches <= 1 or isinstance(loss, StagedLoss),
        f"micro_batches = {micro_batches} needs a StagedLoss, whose noise is drawn before the parts.",
    )
    profile = ema.warmup(float(ema_decay)) if isinstance(ema_decay, (int, float)) else ema_decay
    staged = _staged(loss)

    def step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> TrainState:
        step_key = jax.random.fold_in(key, state.step)
        rows = staged.draw(batch, step_key, state.memory)
        value, metrics, seen, grads = _gradient(staged, state.params, rows, step_key, micro_batches)
        grad_norm = global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if project is not None:
            params = project(params)
        # The norm of the result also catches what finite gradients can do: overflow, 0 / 0 with eps = 0.
        good = jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(global_norm(params))
        done = num_updates(state)
        averages = {name: ema.ema_update(old, params, tracks[name](done)) for name, old in state.tracks.items()}
        metrics |= {"loss": _as_mean(value), "grad_norm": _as_mean(grad_norm)}
        new = state._replace(
            params=params,
            opt_state=opt_state,
            ema_params=ema.ema_update(state.ema_params, params, profile(done)),
            tally=jax.tree.map(jnp.add, state.tally, metrics),
            memory=staged.update(state.memory, seen),
            tracks=averages,
        )
        return _select(good, new, state)._replace(
            step=state.step + 1,
            skipped=state.skipped + (1 - good.astype(jnp.int32)),
            skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1),
        )

    def call(state: TrainState, batch: PyTree, key: Key[Array, ""]) -> TrainState:
        store, items = batch if fetch is not None else (None, batch)

        def one(state: TrainState, item: PyTree) -> tuple[TrainState, None]:
            return step(state, fetch(store, item) if fetch is not None else item, key), None

        return one(state, items)[0] if steps_per_call == 1 else jax.lax.scan(one, state, items)[0]

    return jax.jit(
        call,
        donate_argnums=0,
        out_shardings=state_sharding,
        compiler_options=dict(compiler_options) if compiler_options else None,
    )
