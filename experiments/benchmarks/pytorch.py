"""The same four jobs as a straightforward PyTorch program: a Python loop over `diffusers.UNet2DModel` members.

`ensdiff.interop.diffusers` converts the weights of the ensemble, so that results can be compared.
"""

import pathlib
import tempfile
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.autograd import forward_ad

import ensdiff
from ensdiff.diffusion.samplers import sampler_steps
from ensdiff.interop import channels_last
from ensdiff.interop import diffusers as converter
from experiments.benchmarks.jobs import Job, Setting, start_noise


def members(params: ensdiff.Ensemble) -> list[Any]:
    """Return every member as a `UNet2DModel`."""
    with tempfile.TemporaryDirectory() as folder:
        converter.save(params, folder)
        places = [pathlib.Path(folder) / f"Shard{k}" for k in range(params.members)]
        return [UNet2DModel.from_pretrained(place, low_cpu_mem_usage=False) for place in places]


def _levels(params: ensdiff.Ensemble, config: ensdiff.SamplerConfig) -> list[tuple]:
    return [(int(t), *map(float, rest)) for t, *rest in zip(*sampler_steps(params.schedule, config), strict=True)]


def _noise(setting: Setting, count: int, steps: int) -> torch.Tensor:
    return torch.from_numpy(start_noise(setting, count, steps)[0].transpose(0, 3, 1, 2).copy())


def _images(x: torch.Tensor) -> np.ndarray:
    return channels_last(((x.clamp(-1, 1) + 1) / 2).numpy())


def train_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the job of one training step: one member after another draws noise, computes its loss and updates.

    The job returns the losses.
    """
    nets = members(params)
    optimizers = [torch.optim.Adam(net.parameters(), lr=setting.train.learning_rate) for net in nets]
    abar = torch.from_numpy(params.schedule.abar_T.astype(np.float32))
    size = setting.batch, 1, setting.side, setting.side
    images = torch.rand(setting.members, *size) * 2 - 1

    def call():
        losses = []
        for net, optimizer, image in zip(nets, optimizers, images, strict=True):
            t = torch.randint(0, len(abar), (setting.batch,))
            noise, a = torch.randn(size), abar[t][:, None, None, None]
            loss = ((net(a.sqrt() * image + (1 - a).sqrt() * noise, t).sample - noise) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    return Job(call, 0)


def _denoise(nets, weights, x, levels):
    for t, signal, sigma, keep, target, _ in levels:
        t_B = torch.full((len(x),), t)
        eps = sum(w * net(x, t_B).sample for w, net in zip(weights, nets, strict=True))
        x = keep * x + target * (x - sigma * eps) / signal
    return x


def factual_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the sampling job: every step evaluates one batch by every member."""
    nets = members(params)
    levels = _levels(params, setting.sampler(setting.factual_steps))
    start = _noise(setting, setting.factual, setting.factual_steps)
    weights = [1 / setting.members] * setting.members

    @torch.no_grad()
    def call():
        return _images(_denoise(nets, weights, start, levels))

    return Job(call, 0)


def landscape_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the landscape job: for one unit after another, all samples by the members that did not see it."""
    units, samples = params.code.units, setting.landscape[1]
    nets = members(params)
    levels = _levels(params, setting.sampler(setting.landscape_steps))
    start = _noise(setting, samples, setting.landscape_steps)
    weights_MK = params.code.ablate(np.arange(units))

    @torch.no_grad()
    def call():
        parts = []
        for weights in weights_MK:
            kept = np.flatnonzero(weights)
            parts.append(_images(_denoise([nets[k] for k in kept], weights[kept].tolist(), start, levels)))
        return np.concatenate(parts)

    return Job(call, 0)


def jacobian_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the Jacobian job: one weight after another by `torch.autograd.forward_ad`.

    It uses unfused attention, because PyTorch's fused attention does not support forward mode.
    """
    nets = members(params)
    for net in nets:
        for module in net.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
    levels = _levels(params, setting.sampler(setting.jacobian_steps))
    start = _noise(setting, setting.jacobian, setting.jacobian_steps)
    K = setting.members
    weights = torch.full((K,), 1 / K)

    @torch.no_grad()
    def call():
        rows = []
        for direction in torch.eye(K):
            with forward_ad.dual_level():
                x = _denoise(nets, forward_ad.make_dual(weights, direction), start, levels)
                images = (x.clamp(-1, 1) + 1) / 2
                rows.append(channels_last(forward_ad.unpack_dual(images).tangent.numpy()))
        return np.stack(rows)

    return Job(call, 0)


JOBS = {"train": train_job, "factual": factual_job, "landscape": landscape_job, "jacobian": jacobian_job}
