"""Configurations of earlier versions, brought to the fields of this one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdiff.config.kinds import KINDS
from jaxdiff.config.sections import TrainConfig
from jaxdiff.typing import require

__all__ = ["MOVED", "VERSION", "migrate"]

VERSION = 2
"""Version of stored configurations. 1: a section had the fields of all of its kinds; it was not written down."""


MOVED = {
    **{f"sample.{name}": f"sampler.{name}" for name in ("eta", "order", "s_noise", "s_churn", "variance")},
    **{f"sample.{name}": f"grid.{name}" for name in ("sigma_min", "sigma_max", "shift")},
    "sample.sampler": "sampler.kind",
    "sample.variance_knob": "sampler.noise_scale",
    "sample.grid": "grid.kind",
    "sample.guidance": "guidance.scale",
    "sample.guidance_kind": "guidance.growth",
    "loss.weighting": "weighting.kind",
    "loss.gamma": "weighting.gamma",
}
"""Options of version 1 that have another name now."""


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a stored configuration to this version.

    Raises:
        ValueError: it was written by a later version.
    """
    version = values.get("version", 1)
    require(
        isinstance(version, int) and 1 <= version <= VERSION,
        f"the configuration has version {version}, this jaxdiff reads up to {VERSION}: update jaxdiff",
    )
    values = {name: value for name, value in values.items() if name != "version"}
    return _from_1(values) if version == 1 else values


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    values = _micro_batches(values)
    made = {name: dict(value) for name, value in values.items() if isinstance(value, Mapping)}
    data, loss, optim, sample = (made.get(name, {}) for name in ("data", "loss", "optim", "sample"))
    if not data.get("label"):
        data.pop("label", None)
    gamma = {"gamma": loss.pop("gamma", None)}
    made["weighting"] = {"kind": loss.pop("weighting", "simple")} | _set(gamma)
    optim["kind"] = "adamw" if optim.get("weight_decay") else "adam"
    made |= _sampling(sample)
    chosen = {
        "data": _kept("data", data, "digits", DATA),
        "schedule": _kept("schedule", _set(made.get("schedule", {})), "linear", ("zero_terminal_snr",)),
        "noise_levels": _kept("noise_levels", _set(made.get("noise_levels", {})), "log_normal"),
        "loss": _kept("loss", loss, "denoising", ("noise", "resampling")),
        "optim": _kept("optim", optim, "adam", ("weight_decay",)),
    }
    return {**values, **made, **chosen}


DATA = ("path", "name", "split", "size", "channels", "background", "label", "num", "length", "mean", "std")
"""Fields that every kind of data had, whether it read them or not."""


def _kept(section: str, values: Mapping[str, Any], kind: str, unread: tuple[str, ...] = ()) -> dict[str, Any]:
    """The section without those of its fields in ``unread`` that its kind does not have."""
    kind = values.get("kind", kind)
    config = KINDS[section].get(kind)
    names = [] if config is None else [field.name for field in dataclasses.fields(config)]
    return {"kind": kind} | {name: value for name, value in values.items() if name in names or name not in unread}


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were not None, which meant the default of the kind."""
    return {name: value for name, value in values.items() if value is not None}


def _sampling(sample: dict[str, Any]) -> dict[str, Any]:
    """Take the sections sampler, grid and guidance out of section ``sample``."""
    name, grid = sample.pop("sampler", "dpmpp_2m"), sample.pop("grid", "karras")
    options = _set({option: sample.pop(option, None) for option in ("eta", "order", "s_noise")})
    churn, variance = sample.pop("s_churn", 40.0), sample.pop("variance", "lower")
    knob = sample.pop("variance_knob", "constant")
    has = [field.name for field in dataclasses.fields(KINDS["sampler"][name])] if name in KINDS["sampler"] else []
    if options.get("eta") == 0 and "eta" not in has:
        del options["eta"]  # meant the same to all
    if name == "stochastic_heun":
        options["s_churn"] = churn
    if name == "ddpm":
        options |= {"variance": variance} | ({} if knob == "constant" else {"noise_scale": knob})
    levels = {option: sample.pop(option) for option in ("sigma_min", "sigma_max", "shift") if option in sample}
    spaced = [field.name for field in dataclasses.fields(KINDS["grid"][grid])] if grid in KINDS["grid"] else []
    guidance = {"scale": sample.pop("guidance", 1.0), "growth": sample.pop("guidance_kind", "constant")}
    return {
        "sampler": {"kind": name, **options},
        "grid": {"kind": grid, **{option: value for option, value in levels.items() if option in spaced}},
        "guidance": {"kind": "classifier_free", **guidance},
    }


def _micro_batches(values: dict[str, Any]) -> dict[str, Any]:
    """``optim.accumulate`` = k averaged k batches for one update: one batch of k times the size in k parts."""
    optim = dict(values.get("optim", {}))
    parts = optim.pop("accumulate", 1)
    if "optim" not in values or parts == 1:
        return {**values, "optim": optim} if "optim" in values else values
    train, runtime = dict(values.get("train", {})), dict(values.get("runtime", {}))
    default = TrainConfig()
    train["batch_size"] = parts * train.get("batch_size", default.batch_size)
    train["steps"] = max(train.get("steps", default.steps) // parts, 1)
    return {**values, "optim": optim, "train": train, "runtime": {**runtime, "micro_batches": parts}}
