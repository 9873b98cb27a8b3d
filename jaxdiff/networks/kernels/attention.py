"""Softmax attention, and the form in which this platform computes it."""

import functools
import logging
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.networks.kernels.cpu_attention import softmax_by_rows
from jaxdiff.networks.kernels.forms import asked_attention, one_cpu, plain
from jaxdiff.typing import require

_log = logging.getLogger("jaxdiff")

__all__ = ["Form", "MANY_SCORES", "attend", "attention_form"]


MANY_SCORES = 32 * 32
"""Scores of a head from which on a loop over the rows of a batch pays on a CPU."""


Form: TypeAlias = Literal["cudnn", "rows", "xla"]


def attention_form(
    q: Array | jax.ShapeDtypeStruct, k: Array | jax.ShapeDtypeStruct, *, special: bool
) -> tuple[Form, str]:
    """Choose how attention is computed on the default platform.

    "cudnn" is the fused kernel of GPUs, "rows" is ``cpu_attention.softmax_by_rows``, "xla" the plain form. What
    ``forms.with_attention`` asks for comes first.

    Args:
        q: queries (batch, queries, heads, d); only type and shape matter.
        k: keys (batch, tokens, heads, d).
        special: whether there is a bias or a mask.

    Returns:
        The form, and why it is not a faster one ("" where it is the fastest).

    Raises:
        ValueError: "cudnn" is asked for where that cannot be.
    """
    asked = asked_attention()
    if plain():
        return "xla", "plain_forms"
    backend, head = jax.default_backend(), q.shape[-1]
    if asked == "xla":
        return "xla", "as asked"
    if backend == "gpu" or asked == "cudnn":
        reasons = {
            f"the platform is {backend}": backend != "gpu",
            "a bias or a mask": special,
            f"{q.dtype}, not float16 or bfloat16": q.dtype not in (jnp.float16, jnp.bfloat16),
            f"heads of {head}, not a multiple of 8 up to 128": head % 8 != 0 or head > 128,
        }
        reason = ", ".join(text for text, holds in reasons.items() if holds)
        require(
            not (reason and asked == "cudnn"),
            f"attention is to be cudnn, but cannot: {reason}. Use runtime.attention auto or xla.",
        )
        return ("xla", reason) if reason else ("cudnn", "")
    if backend != "cpu":
        return "xla", ""
    if special or q.dtype not in (jnp.float32, jnp.float64) or not one_cpu():
        return "xla", "a bias, a mask, a short type or several devices"
    return ("rows", "") if q.shape[1] * k.shape[1] >= MANY_SCORES else ("xla", "few tokens")


@functools.cache
def _say(form: str, reason: str) -> None:
    """Write one line for each choice on a GPU."""
    _log.info("attention: %s%s", form, f" ({reason})" if reason else "")


def attend(
    q: Float[Array, "batch queries heads d"],
    k: Float[Array, "batch tokens heads d"],
    v: Float[Array, "batch tokens heads d"],
    *,
    bias: Float[Array, "#batch #heads queries tokens"] | None = None,
    mask: Bool[Array, "#batch #heads #queries tokens"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch queries heads d"]:
    """``softmax(scale Q K^T + bias) V`` for each head: the one place where softmax attention is computed.

    How depends on the platform, see ``attention_form``.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scores.
        mask: False where a query may not look.
        scale: None for 1 / sqrt(d).
    """
    form, reason = attention_form(q, k, special=bias is not None or mask is not None)
    if form == "rows":
        return softmax_by_rows(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (q.shape[0], *bias.shape[1:])).astype(q.dtype)
    if form == "cudnn":
        try:
            mixed = jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
        except RuntimeError as error:  # jax finds no cuDNN, or one that is too old
            if asked_attention() == "cudnn":
                raise
            reason = str(error).splitlines()[0]
        else:
            _say("cudnn", "")
            return mixed
    if jax.default_backend() == "gpu":
        _say("xla", reason)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, scale=scale)
