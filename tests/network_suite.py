"""The suite that every network must pass: a test file imports it whole and names its cases.

from network_suite import *  # noqa: F403
CASES = {"name": Case(NAME(NAMEConfig(...), Inputs(...)), shape, ...)}
"""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import as_network, init_params, param_shapes
from jaxdiff.networks.layers.stack import stack_blocks

BATCH = 4
# Compile time dominates here.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LABEL = {"label": jnp.array([0, 1, 2, 3], jnp.int32)}
NULL_LABEL = {"label": jnp.full((BATCH,), 3, jnp.int32)}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A small configuration and what is expected of it.

    Attributes:
        module: the network.
        shape: of one example; height and width differ.
        cond: conditioning inputs of a batch of BATCH rows; rows 0 and 1 differ in every input.
        null: the null values of the same inputs; absent inputs must count as these. None: absence is not tested.
        out_channels: of the output; None for those of the input.
        dropout: whether there is any.
        uses_noise: whether the noise level enters.
        strided: whether strided convolutions are allowed (their gradients are slow on a CPU).
        convolutions: whether there are any; None for "if the input is an image".
        refused: a shape of one example that must be refused, or None.
        frozen: pattern of the parameters that are never trained, such as fixed random waves: no gradient reaches them.
        no_gradient: pattern of the parameters whose gradient is exactly zero at initialisation, matched against the
            whole path ("block0/conv/kernel"); all others must have one.
        scan: name of the blocks that the field ``scan`` stacks, or "".
        remat: whether there is a field ``remat``.
        moves: least effect of noise level and condition.
        low: largest relative error of bfloat16.
    """

    module: nn.Module
    shape: tuple[int, ...]
    cond: dict | None = None
    null: dict | None = None
    out_channels: int | None = None
    dropout: bool = False
    uses_noise: bool = True
    strided: bool = False
    convolutions: bool | None = None
    refused: tuple[int, ...] | None = None
    frozen: str = ""
    no_gradient: str = ""
    scan: str = ""
    remat: bool = False
    moves: float = 1e-3
    low: float = 2e-2


def perturbed(params):
    """Parameters without the zeros and ones of initialisation, which would hide what they multiply."""
    rng = np.random.default_rng(0)

    def move(p):
        return jnp.array(np.asarray(p) + 0.1 * rng.standard_normal(p.shape).astype(np.float32))

    return jax.tree.map(move, params)


def loss_of(network):
    """(mean square, output) and gradients of a network, jitted."""

    def loss(params, x, noise, cond, key):
        out = network(params, x, noise, cond, key)
        return jnp.square(out - 0.5).mean(), out

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def initial(case):
    """Parameters as initialised."""
    x = jax.ShapeDtypeStruct((BATCH, *case.shape), jnp.float32)
    return init_params(case.module, jax.random.key(0), x, cond=case.cond)


@functools.cache
def built(case):
    """(network, perturbed parameters, jitted forward, jitted (loss, output) and gradients under dropout)."""
    network = as_network(case.module)
    forward, gradients = quick_jit(network), loss_of(network)
    # NumPy results: comparing them compiles nothing.
    return network, perturbed(initial(case)), lambda *args: jax.device_get(forward(*args)), gradients


@functools.cache
def inputs(case):
    """Noisy examples and what the network is told about their noise."""
    x = jax.random.normal(jax.random.key(1), (BATCH, *case.shape))
    return x, jnp.array([1.0, 30.0, 400.0, 999.0]) / getattr(options(case.module), "time_scale", 1.0)


def options(module):
    """What is chosen about a network: its configuration. The autoencoder, which no recipe names, has fields."""
    return getattr(module, "config", module)


def configured(module, **fields):
    """The same network with another configuration."""
    if not hasattr(module, "config"):
        return module.clone(**fields)
    return module.clone(config=dataclasses.replace(module.config, **fields))


def told(module, **fields):
    """The same network with other inputs."""
    if not hasattr(module, "inputs"):
        return module.clone(**fields)
    return module.clone(inputs=dataclasses.replace(module.inputs, **fields))


def named(tree):
    """Leaves by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def test_output_is_float32_of_the_shape_of_the_input(case):
    _, params, forward, _ = built(case)
    x, noise = inputs(case)
    out = forward(params, x, noise, case.cond)
    assert out.shape == (*x.shape[:-1], case.out_channels or x.shape[-1]) or (x.ndim == 2 and out.shape == x.shape)
    assert out.dtype == jnp.float32
    assert bool(np.isfinite(out).all()) and float(out.std()) > 1e-3


def test_rows_do_not_see_each_other(case):
    _, params, forward, _ = built(case)
    (x, noise), cond = inputs(case), case.cond
    out = forward(params, x, noise, cond)
    size = float(np.abs(out).max())
    order = jnp.array([2, 0, 3, 1])
    permuted = forward(params, x[order], noise[order], jax.tree.map(lambda c: c[order], cond))
    np.testing.assert_allclose(permuted, out[order], atol=1e-5 * max(size, 1))
    other = forward(params, x.at[1].add(3.0), noise.at[1].set(7.0), cond)
    np.testing.assert_allclose(other[jnp.array([0, 2, 3])], out[jnp.array([0, 2, 3])], atol=1e-5 * max(size, 1))
    assert float(np.abs(other[1] - out[1]).max()) > 1e-2


def test_noise_level_matters_and_any_real_value_is_finite(case):
    _, params, forward, _ = built(case)
    (x, noise), cond = inputs(case), case.cond
    moved = np.abs(forward(params, x, noise * 0.5, cond) - forward(params, x, noise, cond)).max()
    assert (float(moved) > case.moves) is case.uses_noise
    odd = jnp.array([-1.5, 0.0, 1.1, 1e4])
    assert bool(np.isfinite(forward(params, x, odd, cond)).all())


def test_every_parameter_learns_and_dropout_follows_the_key(case):
    _, params, forward, gradients = built(case)
    (x, noise), cond = inputs(case), case.cond
    (_, out), grads = jax.device_get(gradients(params, x, noise, cond, jax.random.key(3)))
    for path, grad in named(grads).items():
        assert bool(np.isfinite(grad).all()), path
        if re.fullmatch(case.frozen, path):
            assert bool((grad == 0).all()), path
            continue
        # A null value that no row of the batch uses has none.
        assert float(np.abs(grad).max()) > 0 or path.endswith("/null"), path
    again, other = (jax.device_get(gradients(params, x, noise, cond, jax.random.key(k))[0][1]) for k in (3, 4))
    plain = forward(params, x, noise, cond)
    assert bool((again == out).all())
    assert bool((forward(params, x, noise, cond) == plain).all())
    assert (float(np.abs(other - out).max()) > 1e-3) is case.dropout
    assert (float(np.abs(plain - out).max()) > 1e-3) is case.dropout


def test_gradients_at_initialisation_vanish_exactly_where_they_should(case):
    _, _, _, gradients = built(case)
    grads = jax.device_get(gradients(initial(case), *inputs(case), case.cond, jax.random.key(3))[1])
    for path, grad in named(grads).items():
        assert bool(np.isfinite(grad).all()), path
        if path.endswith("/null") or re.fullmatch(case.frozen, path):
            continue
        expected = case.no_gradient != "" and re.fullmatch(case.no_gradient, path) is not None
        assert bool((grad == 0).all()) is expected, path


def test_bfloat16_compute_stays_close_to_float32(case):
    _, params, forward, _ = built(case)
    (x, noise), cond = inputs(case), case.cond
    low = as_network(told(case.module, dtype=jnp.bfloat16))
    out, rounded = forward(params, x, noise, cond), jax.device_get(quick_jit(low)(params, x, noise, cond))
    assert rounded.dtype == jnp.float32
    error = float(np.sqrt(np.square(rounded - out).mean()) / out.std())
    assert 0 < error < case.low


def test_recomputation_changes_neither_output_nor_gradients(case):
    if not case.remat:
        assert not hasattr(options(case.module), "remat")
        return
    _, params, _, gradients = built(case)
    arguments = (params, *inputs(case), case.cond, jax.random.key(3))
    other = as_network(configured(case.module, remat=True))
    jaxpr = jax.make_jaxpr(loss_of(other).__wrapped__)(*arguments)
    assert any(eqn.primitive.name in ("remat", "remat2", "checkpoint") for eqn in equations(jaxpr.jaxpr))
    (_, out), grads = jax.device_get(gradients(*arguments))
    (_, again), same = jax.device_get(loss_of(other)(*arguments))
    close(again, out)
    close_gradients(same, grads)


def test_a_loop_over_the_depth_computes_the_same(case):
    if not case.scan:
        assert not hasattr(options(case.module), "scan")
        return
    _, params, forward, _ = built(case)
    looped = configured(case.module, scan=True)
    (x, noise), stacked = inputs(case), stack_blocks(params, case.scan)
    shapes = jax.tree.map(jnp.shape, param_shapes(looped, x.shape, case.cond))
    assert jax.tree.map(jnp.shape, stacked) == shapes
    run = quick_jit(jax.value_and_grad(lambda p: jnp.square(as_network(looped)(p, x, noise, case.cond)).mean()))
    plain = quick_jit(jax.value_and_grad(lambda p: jnp.square(as_network(case.module)(p, x, noise, case.cond)).mean()))
    (value, grads), (expected, wanted) = jax.device_get((run(stacked), plain(params)))
    close(value, expected)
    jax.tree.map(close, grads, jax.device_get(stack_blocks(wanted, case.scan)))


def close(a, b, least=1e-6, share=1e-5):
    """Equal to a share of the largest entry, or of ``least`` where all are smaller."""
    np.testing.assert_allclose(a, b, atol=share * max(float(np.abs(b).max()), least), rtol=0)


def close_gradients(a, b):
    """``close`` for every array; a small difference of large sums is held against the gradient as a whole."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: close(x, y, 1e-2 * largest, share=2e-5), a, b)  # 1.4e-5 seen: sums in another order


def test_no_slow_convolutions_forward_or_backward(case):
    _, params, _, gradients = built(case)
    jaxpr = jax.make_jaxpr(gradients.__wrapped__)(params, *inputs(case), case.cond, jax.random.key(0))
    convolutions = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
    expected = len(case.shape) == 3 if case.convolutions is None else case.convolutions
    assert bool(convolutions) is expected
    for eqn in convolutions:
        dilated = {*eqn.params["lhs_dilation"], *eqn.params["rhs_dilation"]} != {1}
        assert case.strided or not dilated
        assert eqn.params["feature_group_count"] == 1 and eqn.params["batch_group_count"] == 1
    assert not [e for e in equations(jaxpr.jaxpr) if "reduce_window" in e.primitive.name]


def test_init_is_reproducible_and_shapes_need_no_draw(case):
    x = jax.ShapeDtypeStruct((BATCH, *case.shape), jnp.float32)
    params, other = (
        jax.tree.map(np.asarray, init_params(case.module, jax.random.key(k), x, cond=case.cond)) for k in (0, 6)
    )
    shapes = jax.tree.map(lambda s: (s.shape, s.dtype), param_shapes(case.module, x.shape, case.cond))
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params) == shapes
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    again = initial(case)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, again))
    random_leaves = jax.tree.map(lambda p: bool((p != p.ravel()[0]).any()) if p.size > 1 else None, params)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()) if a.size > 1 else None, params, other)
    assert random_leaves == differs and any(jax.tree.leaves(differs))


def test_conditioning_matters_and_its_absence_is_the_null_value(case):
    if not case.cond:
        return
    _, params, forward, _ = built(case)
    x, noise = inputs(case)
    out = forward(params, x, noise, case.cond)
    for name in case.cond:
        swapped = {**case.cond, name: case.cond[name][jnp.array([1, 0, 2, 3])]}
        moved = np.abs(out - forward(params, x, noise, swapped)).reshape(BATCH, -1).max(-1)
        assert float(moved[:2].min()) > case.moves, name
        assert float(moved[2:].max()) < 1e-5 * max(1, float(np.abs(out).max())), name
    if case.null is None:
        return
    absent, null = forward(params, x, noise), forward(params, x, noise, case.null)
    np.testing.assert_allclose(absent, null, atol=1e-5 * max(1, float(np.abs(out).max())))
    assert float(np.abs(absent - out)[0].max()) > case.moves


def test_a_size_that_does_not_fit_is_refused_by_name(case):
    if case.refused is None:
        assert len(case.shape) < 3
        return
    with pytest.raises(ValueError, match=str(case.refused[0])):
        param_shapes(case.module, (1, *case.refused), case.cond)
