"""Configuration: strict reading, exact round trips, refusals that name the fix."""

import pytest

from jaxdiff import config as C

RUNS = [
    C.Config(name="a"),
    C.Config(
        name="b",
        network=C.VectorTransformerConfig(heads=1),
        data=C.VectorsConfig(num=5, length=8),
    ),
    C.Config(name="c", network=C.ContextUnetConfig(), data=C.FolderConfig(size=(8, 12), condition="context")),
    C.Config(name="d", parameterization=C.ParameterizationConfig(kind="v", sigma_data=0.7)),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_json_round_trip_is_exact(run):
    assert C.from_json(C.to_json(run)) == run


def test_unknown_keys_name_the_nearest():
    values = C.to_dict(RUNS[0])
    values["train"]["stepz"] = 3
    with pytest.raises(ValueError, match="'train.stepz'.*'steps'"):
        C.from_dict(values)


def test_wrong_types_are_refused():
    values = C.to_dict(RUNS[0])
    values["train"]["steps"] = "many"
    with pytest.raises(ValueError, match="train.steps"):
        C.from_dict(values)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: C.TrainConfig(steps=0), "train.steps is 0"),
        (lambda: C.AdamConfig(ema=1.0), "optim.ema is 1.0"),
        (lambda: C.DenoisingConfig(cond_dropout=-0.1), "cond_dropout is -0.1"),
        (lambda: C.weighting("edm", gamma=2.0), "weighting.gamma does not apply to weighting.kind 'edm'"),
        (lambda: C.sampler("huen"), "sampler.kind 'huen' is not known: choose one of .*heun"),
        (lambda: C.Config(name="x", loss=C.DenoisingConfig(cond_dropout=0.1)), "nothing to drop"),
        (
            lambda: C.Config(
                name="x",
                schedule=C.schedule("linear", zero_terminal_snr=True),
                parameterization=C.ParameterizationConfig(kind="eps"),
            ),
            "--parameterization.kind v or x0",
        ),
    ],
)
def test_bad_values_name_the_fix(make, words):
    with pytest.raises(ValueError, match=words):
        make()
