"""The forms of convolution, attention and sums that a CPU gets: functions and derivatives of the plain ones."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdiff.networks import as_network, init_params
from jaxdiff.networks.kernels import attention, cpu_attention, cpu_convolution
from jaxdiff.networks.kernels.attention import attend, attention_form
from jaxdiff.networks.kernels.convolution import convolve, upsample_convolve, upsample_nearest
from jaxdiff.networks.kernels.forms import with_attention
from jaxdiff.networks.layers import Conv, GroupNorm
from jaxdiff.networks.layers.attention import TokenAttention


def plain(x, kernel, stride, padding):
    """The convolution of jax."""
    axes = x.ndim - 2
    space = "HW"[2 - axes :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * axes, [padding] * axes, dimension_numbers=numbers)


def drawn(*shapes, dtype=jnp.float64):
    """Arrays of standard normals."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def close(a, b, tolerance=1e-12):
    """Equal relative to the largest entry."""
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=0, atol=tolerance * (float(np.abs(q).max()) + 1e-9)), a, b
    )


def derivatives(f, *args):
    """Value, gradients of a weighted sum, and a directional derivative."""
    tangents = tuple(a * a for a in args)

    @jax.jit
    def all_of_them(args, tangents):
        value, pull = jax.vjp(f, *args)
        return value, pull(jnp.cos(value)), jax.jvp(f, args, tangents)[1]

    return all_of_them(args, tangents)


@pytest.mark.parametrize(
    ("space", "size", "stride", "padding"),
    [
        ((7, 6), 3, 1, (1, 1)),
        ((7, 6), 3, 2, (0, 1)),
        ((7, 6), 3, 2, (1, 1)),
        ((8, 9), 4, 2, (1, 1)),
        ((8, 9), 5, 3, (2, 1)),
        ((5, 4), 1, 1, (0, 0)),
        ((5, 4), 1, 2, (1, 0)),
        ((5, 4), 2, 1, (3, 2)),
        ((2, 2), 3, 1, (1, 1)),
        ((1, 3), 3, 1, (1, 1)),
        ((1, 1), 3, 2, (1, 1)),
        ((1, 2), 3, 1, (2, 2)),
        ((9,), 3, 1, (0, 2)),
        ((9,), 7, 2, (3, 3)),
    ],
)
def test_convolutions_and_their_derivatives_are_exact(space, size, stride, padding):
    with jax.enable_x64(True):
        x, kernel = drawn((2, *space, 3), (*(size,) * len(space), 3, 4))
        ours = functools.partial(convolve, stride=stride, padding=padding)
        close(derivatives(ours, x, kernel), derivatives(lambda a, b: plain(a, b, stride, padding), x, kernel))


def test_convolutions_under_transformations():
    with jax.enable_x64(True):
        x, kernel = drawn((3, 2, 5, 5, 2), (3, 3, 3, 2, 4))

        def second(f):
            def loss(k):
                return jnp.square(jax.grad(lambda y: jnp.square(f(y, k)).sum())(x[0])).sum()

            return jax.grad(loss)(kernel[0])

        def theirs(a, b):
            return plain(a, b, 1, (1, 1))

        close(second(jax.checkpoint(convolve)), second(theirs))
        for axes in ((0, 0), (0, None), (None, 0)):
            args = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]
            close(jax.vmap(convolve, axes)(*args), jax.vmap(theirs, axes)(*args))

    short = convolve(x[0].astype(jnp.bfloat16), kernel[0].astype(jnp.bfloat16))
    assert short.dtype == jnp.bfloat16
    close(short.astype(jnp.float32), convolve(x[0].astype(jnp.float32), kernel[0].astype(jnp.float32)), 2e-2)


def test_convolutions_of_repeated_pixels_are_exact():
    with jax.enable_x64(True):
        x, kernel = drawn((2, 3, 4, 2), (3, 3, 2, 5))
        close(
            derivatives(upsample_convolve, x, kernel),
            derivatives(lambda a, b: plain(upsample_nearest(a), b, 1, (1, 1)), x, kernel),
        )
    with pytest.raises(ValueError, match="no stride and no padding, got 2 and None"):
        Conv(3, stride=2, upsampled=True).init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))


def gradient_in_a_loop(x, kernel):
    """Sum of the gradients over micro-batches."""
    grad = jax.grad(lambda k, part: jnp.square(convolve(part, k)).sum())
    return jax.lax.scan(lambda total, part: (total + grad(kernel, part), None), jnp.zeros_like(kernel), x)[0]


def test_gradients_in_loops_are_in_the_fast_layout():
    x, kernel = drawn((2, 4, 8, 8, 3), (3, 3, 3, 5), dtype=jnp.float32)
    text = jax.jit(gradient_in_a_loop).lower(x, kernel).as_text()
    layouts = re.findall(r"dim_numbers = (.+?), window", text)
    assert layouts and set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    assert "dilate = [2" not in text


def test_rows_on_several_devices_stay_there():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = drawn((16, 8, 8, 4), (3, 3, 4, 6), dtype=jnp.float32)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    grad = jax.jit(jax.grad(lambda k, y: jnp.square(convolve(y, k)).sum()))
    compiled = grad.lower(kernel, spread).compile().as_text()
    assert "all-reduce" in compiled and "all-gather" not in compiled and "all-to-all" not in compiled
    close(grad(kernel, spread), grad(kernel, x), 1e-5)


# Attention


@pytest.mark.parametrize(("heads", "limit"), [(2, 2**21), (3, 100)])  # heads together and one by one
def test_attention_and_its_derivatives_are_exact(heads, limit, monkeypatch):
    monkeypatch.setattr(cpu_attention, "SCORES_BYTES", limit)
    with jax.enable_x64(True):
        q, k, v = drawn((3, 6, heads, 4), (3, 5, heads, 4), (3, 5, heads, 4))
        ours = functools.partial(cpu_attention.softmax_by_rows, scale=0.7)
        theirs = functools.partial(softmax, scale=0.7)
        close(derivatives(ours, 9 * q, k, v), derivatives(theirs, 9 * q, k, v))
        stacked = [jnp.stack([a, 2 * a]) for a in (q, k, v)]
        close(jax.vmap(ours)(*stacked), jax.vmap(theirs)(*stacked))
        huge = ours(1e4 * q, k, v)  # scores far beyond what the exponential can hold
        close(huge, theirs(1e4 * q, k, v))


def softmax(q, k, v, *, scale):
    """Attention as it is written down."""
    return jnp.einsum("bhqt,bthd->bqhd", jax.nn.softmax(scale * jnp.einsum("bqhd,bthd->bhqt", q, k), -1), v)


def test_the_form_follows_platform_type_and_size(monkeypatch):
    q = jax.ShapeDtypeStruct((2, 64, 4, 32), jnp.float32)
    small = jax.ShapeDtypeStruct((2, 4, 4, 32), jnp.float32)
    short = jax.ShapeDtypeStruct((2, 64, 4, 32), jnp.bfloat16)
    assert attention_form(q, q, special=False)[0] == "xla"  # eight devices here
    monkeypatch.setattr(attention, "one_cpu", lambda: True)
    assert attention_form(q, q, special=False) == ("rows", "")
    for other, special in ((small, False), (short, False), (q, True)):
        assert attention_form(other, other, special=special)[0] == "xla"
    with with_attention("xla"):
        assert attention_form(q, q, special=False) == ("xla", "as asked")
    with with_attention("cudnn"), pytest.raises(ValueError, match="the platform is cpu. Use runtime.attention auto"):
        attention_form(short, short, special=False)


class OneAttention(nn.Module):
    @nn.compact
    def __call__(self, x, noise_cond, cond=None, *, train=False):
        return TokenAttention(heads=2, name="only")(x)


def test_a_network_computes_attention_as_it_was_made_to():
    x, noise = jnp.ones((2, 3, 8)), jnp.ones(2)
    plain, insisting = (as_network(OneAttention(), attention=choice) for choice in ("xla", "cudnn"))
    params = init_params(OneAttention(), jax.random.key(0), x)
    assert plain == as_network(OneAttention(), attention="xla") != insisting
    assert plain(params, x, noise).shape == x.shape
    with pytest.raises(ValueError, match="attention is to be cudnn, but cannot: the platform is cpu"):
        insisting(params, x, noise)


def test_the_form_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def form(dtype, head, special=False):
        q = jax.ShapeDtypeStruct((2, 64, 4, head), dtype)
        return attention_form(q, q, special=special)

    assert form(jnp.bfloat16, 64) == ("cudnn", "") == form(jnp.float16, 128)
    assert form(jnp.float32, 64) == ("xla", "float32, not float16 or bfloat16")
    assert form(jnp.bfloat16, 136)[0] == form(jnp.bfloat16, 12)[0] == form(jnp.bfloat16, 64, True)[0] == "xla"


def test_attention_without_the_library_is_plain_and_says_so_once(monkeypatch, caplog):
    q = jnp.ones((2, 8, 2, 8), jnp.bfloat16)
    attention._say.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with caplog.at_level(logging.INFO, logger="jaxdiff"):
        monkeypatch.setattr(logging.getLogger("jaxdiff"), "propagate", True)
        for _ in range(2):
            assert attend(q, q, q).shape == q.shape
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("attention: xla (cuDNN")
    with with_attention("cudnn"), pytest.raises(RuntimeError, match="cuDNN"):
        attend(q, q, q)


# Sums


def test_layers_on_one_cpu_compute_the_same(monkeypatch):
    x = drawn((2, 16, 16, 4), dtype=jnp.float32)[0]

    def run(module):
        def call(params):
            y = module.apply({"params": params}, x)
            return jnp.square(y).mean(), y

        params = jax.tree.map(lambda p: p + 0.1, module.init(jax.random.key(0), x)["params"])
        return jax.jit(jax.value_and_grad(call, has_aux=True))(params)

    for module in (Conv(3), GroupNorm(2)):
        expected = run(module)
        with monkeypatch.context() as patch:
            patch.setattr("jaxdiff.networks.layers.basic.one_cpu", lambda: True)
            close(run(module), expected, 2e-6)


def test_rows_are_folded_where_enough_are_left():
    assert [cpu_convolution.fold_rows(n) for n in (1, 64, 127, 128, 130, 256, 254, 0)] == [1, 1, 1, 2, 2, 4, 2, 1]
    x, bias = drawn((5, 52, 3), (3,), dtype=jnp.float32)
    close(cpu_convolution.add_channelwise(x, bias), x + bias[None, None], 1e-7)
