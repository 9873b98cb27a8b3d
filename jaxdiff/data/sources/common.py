"""The settings that all sources of examples share."""

import dataclasses
from typing import Literal

from jaxdiff.conditioning import CondKind, StoredName
from jaxdiff.data.spec import Source
from jaxdiff.typing import require

__all__ = ["DataConfig", "given_path"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of any examples; a source declares its own beside it."""

    kind: str = ""
    condition: CondKind = "none"
    """What the network is told: nothing, the class label, or a one-hot context vector."""
    inputs: tuple[StoredName, ...] = ()
    """What else the network is told, from the arrays cond_NAME of an npz file: metadata, embedded text, an image."""
    flip: bool = False
    """Random horizontal flips. Leave off for text and digits."""
    shape: tuple[int, ...] = ()
    """Shape that every example must have, such as 32 32 4; empty: any. --dry-run needs no data where it is given."""
    classes: int = 0
    """Number of classes that the data must have; 0: any."""
    normalize: Literal["auto", "feature", "scalar", "none"] = "auto"
    """Map of data that are no images to model space: one mean and deviation by feature, one for all, none."""

    def open(self, seed: int) -> Source:
        """Open the examples; ``seed`` is that of synthetic ones."""
        raise NotImplementedError(type(self).__name__)


def given_path(config: DataConfig, path: str) -> str:
    """The path of a file or folder, which must be given.

    Raises:
        ValueError: it is empty.
    """
    require(bool(path), f"data.kind {config.kind!r} reads a file or folder: give --data.path PATH")
    return path
