"""Small explorations for the tests of the explorer: untrained ensembles with unit names that try to inject HTML."""

import dataclasses

import numpy as np

import ensdiff
from ensdiff.attribution.judging import Judgement
from ensdiff.attribution.queries import query_marks
from ensdiff.data.checked import from_images
from ensdiff.metrics import Estimate
from ensdiff.models.space import Latents
from ensdiff.report.explorer import Exploration, explore
from tests.helpers import TINY, blobs, random_ensemble

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>'\"&"
METRICS = [{"step": step, "loss_K": [1.0 / step + k for k in range(1, 9)]} for step in (1, 2, 3)]


def items(inline_names=(HOSTILE, "b & c"), *, null=9, top=12, **options):
    """Return an exploration of twenty items as units, in three classes, with 8 members."""
    names = [*inline_names, *(f"picture {i}" for i in range(len(inline_names), 20))]
    data = from_images(blobs(20), names=names, labels=np.arange(20) % 3)
    params = random_ensemble(ensdiff.Code.balanced(8, 20, seed=0))
    samples = ensdiff.sample(params, 0, 3, steps=3)
    layer = explore(params, data, samples, top=top, combined=3, null=null, **options)
    return params, data, samples, layer


def groups():
    """Return explorations of thirty items in four groups, with items or groups as units, and 8 members."""
    group = np.arange(30) % 4
    data = from_images(blobs(30), labels=group)
    code = ensdiff.Code.hierarchical(8, group, group_weight=6, weight=3, seed=0, group_names=list("wxyz"))
    params = random_ensemble(code)
    samples = ensdiff.sample(params, 0, 2, steps=3)
    both = [explore(params, data, samples, groups=g, top=10, combined=3, null=4) for g in (False, True)]
    return params, data, samples, both


def scored(samples, units, *, low=0.36, method="combined", settings=None):
    """Return a made-up attribution by a gradient method, in which sample 0 is attributable to its first unit only."""
    B, T = len(samples), min(7, units)
    rng = np.random.default_rng(0)
    order_BT = np.stack([rng.permutation(units)[:T] for _ in range(B)])
    q_BT = np.ones((B, T))
    q_BT[0, 0] = 0.02
    values = {
        "candidates": units,
        "units": units,
        "null_kind": "held-out",
        "null_of_a_kind": 1999,
        "chosen": {"method": "trak"},
        "queries": query_marks(np.asarray(samples.images)),
    }
    return ensdiff.Attribution(
        order_BT,
        np.tile(0.1 / np.arange(1.0, T + 1), (B, 1)),
        q_BT / 20,
        rng.normal(size=(B, 1999)),
        method,
        "loss",
        values | (settings or {}),
        q_value=q_BT,
        standard_error=np.full((B, T), 0.0123),
        judgement=Judgement(Estimate(0.41, low, 0.46), Estimate(1.2, 1.0, 1.4), {"method": "trak"}, (), B, 8),
    )


def exploration(samples, layers, **options):
    command = "python -m experiments.sample --run=runs/x --n=3"
    options = {"facts": [("members", "8")], "metrics": METRICS, **options}
    return Exploration("A <b>title</b>", samples, layers, command, **options)


def latents():
    """Return an untrained ensemble on 4x4x4 latents of three classes, its data, three samples and a decoder."""
    model = dataclasses.replace(TINY, image_channels=4, classes=3)
    values = np.random.default_rng(0).normal(size=(12, 4, 4, 4)).astype(np.float16)
    data = from_images(
        values, condition=np.arange(12) % 3, class_names=["cat", "<b>dog</b>", "fox"], space=Latents(scale=(0.5,))
    )
    code = ensdiff.Code.balanced(6, 12, seed=0)
    params = random_ensemble(code, model, image_shape=(4, 4, 4), condition=data.condition_spec)
    params = dataclasses.replace(params, space=data.space, data_digest=data.digest())
    return params, data, ensdiff.sample(params, 0, 3, steps=2, cond=[0, 1, 2], guidance=2.0), decode


def decode(latents_NHWC):
    """Return 8x8 colour pictures of 4x4x4 latents: a stand-in for an autoencoder."""
    return np.repeat(np.repeat(1 / (1 + np.exp(-latents_NHWC[..., :3])), 2, axis=1), 2, axis=2)
