"""What a network is traced for: the forms of convolution and attention depend on it."""

import contextlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

import jax

__all__ = ["Attention", "asked_attention", "on_cpu", "one_cpu", "plain", "plain_forms", "with_attention"]

Attention: TypeAlias = Literal["auto", "xla", "cudnn"]
"""How attention is to be computed: what is fastest here, the plain form, or cuDNN's kernel and nothing else."""

# jax keeps it with each program, so that what was traced in one form is not taken for the other.
_PLAIN = jax.make_user_context(False)
_ATTENTION = jax.make_user_context("auto")


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Trace convolutions and attention as they are written in the textbook, whatever the platform.

    For programs whose operations are counted, or that are made for another platform than the one they are traced on.
    """
    with _PLAIN(True):
        yield


@contextlib.contextmanager
def with_attention(asked: Attention) -> Iterator[None]:
    """Trace attention as asked; see ``attention.attention_form``."""
    with _ATTENTION(asked):
        yield


def asked_attention() -> Attention:
    """Form of attention asked for in what is traced now."""
    return _ATTENTION.value


def plain() -> bool:
    """Whether ``plain_forms`` is entered."""
    return _PLAIN.value


def on_cpu() -> bool:
    """Whether the forms for a CPU are asked for: the default platform at the time of tracing is one."""
    return jax.default_backend() == "cpu" and not plain()


def one_cpu() -> bool:
    """Whether the program is traced for a single CPU device.

    What merges axes or loops over the batch asks this: a batch that is spread over devices would be gathered.
    """
    return on_cpu() and jax.device_count() == 1
