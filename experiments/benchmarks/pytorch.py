"""The same jobs in PyTorch, with `diffusers.UNet2DModel` members, in several ways (`experiments.benchmarks.ways`).

`ensdiff.interop.diffusers` converts the weights of the ensemble, so that results can be compared. On GPUs float32
products use TF32, as JAX's do there.
"""

import contextlib
import copy
import functools
import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.autograd import forward_ad
from torch.func import functional_call, jacfwd, stack_module_state, vmap

import ensdiff
from ensdiff.attribution.draws import draw_noise
from ensdiff.attribution.pictures import model_images, pictures_of
from ensdiff.diffusion.samplers import sampler_steps
from ensdiff.interop import channels_last
from ensdiff.interop import diffusers as converter
from ensdiff.interop.unet2d import model_options

from .jobs import Job, Setting, loss_draws, loss_images, start_noise
from .ways import Way, missing_compiler

ROWS_AT_ONCE = {"cpu": 16, "cuda": 512}
"""Most images of one prediction of a member, when states are grouped by member."""


def device() -> str:
    """Return ``"cuda"`` if PyTorch sees a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Members:
    """The members of an ensemble as PyTorch modules on the device, and their predictions in one `Way`.

    Args:
        params: the ensemble.
        way: the way.
        nets: its members, if they have been made for another way with the same memory format.
    """

    def __init__(self, params: ensdiff.Ensemble, way: Way, nets: list[Any] | None = None):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.way, self.device = way, device()
        self.nets = networks(params) if nets is None else nets
        for net in self.nets:
            net.to(self.device, memory_format=torch.channels_last if way.channels_last else torch.contiguous_format)
        # parameters are passed to this one. It has none of its own, so that no member's are a special case
        self._base = copy.deepcopy(self.nets[0]).to("meta") if way.stacked or way.compiled else self.nets[0]
        if way.stacked:
            for module in modules([self._base], torch.nn.GroupNorm):
                module.forward = functools.partial(_group_norm, module)
        self._network: Callable = self._functional
        if way.compiled:
            if why := missing_compiler(self.device):
                raise RuntimeError(f"torch.compile: {why}")
            torch.compiler.reset()
            self._network = torch.compile(self._functional, dynamic=False)

    def __len__(self) -> int:
        return len(self.nets)

    @functools.cached_property
    def states(self) -> list[dict[str, torch.Tensor]]:
        """Return the parameters of each member."""
        return [dict(net.named_parameters()) for net in self.nets]

    @functools.cached_property
    def stacked(self) -> dict[str, torch.Tensor]:
        """Return the parameters of all members, stacked along a leading axis."""
        states, _ = stack_module_state(self.nets)
        return {name: value.detach() for name, value in states.items()}

    def unfuse_attention(self) -> None:
        """Replace PyTorch's fused attention, which does not support forward-mode derivatives."""
        for module in modules(self.nets, Attention):
            module.set_processor(AttnProcessor())

    def _functional(self, state: dict[str, torch.Tensor], x: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return functional_call(self._base, state, (x, t_B), {"return_dict": False})[0]

    def casts(self) -> contextlib.AbstractContextManager:
        """Return the context in which layers compute in the dtype of the way."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.way.bfloat16)

    def network(self, k: int, x: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        """Return member k's prediction. Members share one compiled network."""
        if self.way.compiled:
            return self._network(self.states[k], x, t_B)
        return self.nets[k](x, t_B, return_dict=False)[0]

    def predict(self, k: int, x: torch.Tensor, t: int) -> torch.Tensor:
        """Return member k's prediction at level t, float32."""
        with self.casts():
            return self.network(k, x, torch.full((len(x),), t, device=x.device)).float()

    def predict_all(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """Return the predictions of all members, (K, B, C, H, W), by vmap."""
        with self.casts():
            t_B = torch.full((len(x),), t, device=x.device)
            return vmap(self._functional, in_dims=(0, None, None))(self.stacked, x, t_B).float()

    def place(self, array: np.ndarray) -> torch.Tensor:
        """Return images (B, H, W, C) as a tensor (B, C, H, W) on the device."""
        tensor = torch.from_numpy(np.array(array.transpose(0, 3, 1, 2), order="C")).to(self.device)
        return tensor.contiguous(memory_format=torch.channels_last) if self.way.channels_last else tensor


def modules(nets: Iterable[Any], kind: type) -> Iterator[Any]:
    """Yield the modules of one kind of some networks."""
    for net in nets:
        yield from (module for module in net.modules() if isinstance(module, kind))


def _group_norm(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """Apply a GroupNorm by the operation that vmap can batch without derivatives; torch.group_norm is not one."""
    B, C, *size = x.shape
    normed: Any = torch.native_group_norm(
        x.contiguous(), norm.weight, norm.bias, B, C, math.prod(size), norm.num_groups, norm.eps
    )
    return normed[0]


def networks(params: ensdiff.Ensemble) -> list[Any]:
    """Return every member as a `UNet2DModel` on the CPU."""
    options = {name: value for name, value in model_options(params).items() if not name.startswith("_")}
    made = []
    for state in converter.state_dicts(params):
        net = UNet2DModel(**options)
        net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        made.append(net.eval())
    return made


def synchronised(work: Callable[[], torch.Tensor], way: Way, collect: Callable[[torch.Tensor], np.ndarray]) -> Job:
    """Return the job that does some work and copies its result to the host; with ``way.graph`` it replays a graph."""
    if way.graph:
        work = recorded(work)
    return Job(lambda: collect(work().detach().cpu()))


def recorded(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Record a function without arguments as a CUDA graph, after three calls that warm it up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def _levels(params: ensdiff.Ensemble, config: ensdiff.SamplerConfig) -> list[tuple]:
    return [(int(t), *map(float, rest)) for t, *rest in zip(*sampler_steps(params.schedule, config), strict=True)]


def _images(x: torch.Tensor) -> np.ndarray:
    return channels_last(((x.clamp(-1, 1) + 1) / 2).numpy())


def _denoise(predict: Callable[[torch.Tensor, int], torch.Tensor], x: torch.Tensor, levels: list[tuple]):
    for t, signal, sigma, keep, target, _ in levels:
        x = keep * x + target * (x - sigma * predict(x, t)) / signal
    return x


def _mixed(members: Members, kept: Sequence[int], weights: Sequence[Any]) -> Callable:
    """Return the weighted prediction of some members, one after another."""
    return lambda x, t: sum(w * members.predict(k, x, t) for w, k in zip(weights, kept, strict=True))


def factual_job(setting: Setting, params: ensdiff.Ensemble, way: Way) -> Job:
    """Build the sampling job: every step evaluates one batch by every member."""
    members = Members(params, way)
    levels = _levels(params, setting.sampler(setting.factual_steps))
    start = members.place(start_noise(setting, setting.factual, setting.factual_steps)[0])
    mixed = _mixed(members, range(len(members)), [1 / len(members)] * len(members))
    predict = (lambda x, t: members.predict_all(x, t).mean(0)) if way.stacked else mixed

    @torch.no_grad()
    def work():
        return _denoise(predict, start, levels)

    return synchronised(work, way, _images)


def landscape_job(setting: Setting, params: ensdiff.Ensemble, way: Way) -> Job:
    """Build the landscape job: all samples, for every unit by the members that did not see it."""
    units, samples = params.code.units, setting.landscape[1]
    members = Members(params, way)
    levels = _levels(params, setting.sampler(setting.landscape_steps))
    start = members.place(start_noise(setting, samples, setting.landscape_steps)[0])
    weights_MK = params.code.ablate(np.arange(units)).astype(np.float32)
    weights_RK = np.repeat(weights_MK, samples, axis=0)  # states, unit by unit
    size = ROWS_AT_ONCE[members.device]
    parts = []  # (member, states, their weights)
    for k in range(len(members)):
        rows = np.flatnonzero(weights_RK[:, k])
        for some in np.array_split(rows, -(-len(rows) // size)) if len(rows) else []:
            weight = torch.from_numpy(weights_RK[some, k])[:, None, None, None].to(members.device)
            parts.append((k, torch.from_numpy(some).to(members.device), weight))

    def predict(x, t):
        eps = torch.zeros_like(x)
        for k, rows, weight in parts:
            eps.index_add_(0, rows, weight * members.predict(k, x[rows], t))
        return eps

    @torch.no_grad()
    def work():
        if way.by_member:
            return _denoise(predict, start.repeat(units, 1, 1, 1), levels)
        images = []
        for weights in weights_MK:
            kept = np.flatnonzero(weights)
            images.append(_denoise(_mixed(members, kept.tolist(), weights[kept].tolist()), start, levels))
        return torch.cat(images)

    return synchronised(work, way, _images)


def jacobian_job(setting: Setting, params: ensdiff.Ensemble, way: Way) -> Job:
    """Build the Jacobian job: one weight after another in forward mode; all weights at once if the way is stacked."""
    members = Members(params, way)
    members.unfuse_attention()
    levels = _levels(params, setting.sampler(setting.jacobian_steps))
    start = members.place(start_noise(setting, setting.jacobian, setting.jacobian_steps)[0])
    K = len(members)
    weights, directions = torch.full((K,), 1 / K, device=members.device), torch.eye(K, device=members.device)

    def sampled(weights):
        x = _denoise(_mixed(members, range(K), weights.unbind()), start, levels)
        return (x.clamp(-1, 1) + 1) / 2

    @torch.no_grad()
    def work():
        if way.stacked:
            return jacfwd(sampled)(weights).movedim(-1, 0)
        rows = []
        for direction in directions:
            with forward_ad.dual_level():
                images = sampled(forward_ad.make_dual(weights, direction))
                rows.append(forward_ad.unpack_dual(images).tangent)
        return torch.stack(rows)

    return synchronised(work, way, lambda rows: channels_last(rows.numpy()))


def loss_job(setting: Setting, params: ensdiff.Ensemble, way: Way) -> Job:
    """Build the job of the loss matrix, with the draws that ensdiff makes; they are drawn beforehand."""
    members = Members(params, way)
    config, schedule = loss_draws(setting), params.schedule
    key = jax.random.key(0)
    numbers = np.arange(config.draws, dtype=np.int32)
    eps = np.asarray(draw_noise(jax.random.fold_in(key, 2**31 - 1), jax.numpy.asarray(numbers), params.image_shape))
    blocks = range(config.draws // config.block)
    t_D = np.concatenate([config.draw_levels(schedule, key, block) for block in blocks]).astype(np.int64)
    x = members.place(np.asarray(model_images(params, pictures_of(params, loss_images(setting)))))
    eps_D, t_D = members.place(eps), torch.from_numpy(t_D).to(members.device)
    abar = torch.from_numpy(schedule.abar_T.astype(np.float32)).to(members.device)[t_D][:, None, None, None]
    B, D = len(x), config.draws

    @torch.no_grad()
    def work():
        total = torch.zeros(B, len(members), len(members), dtype=torch.float64, device=members.device)
        for image in range(B):
            noisy = abar.sqrt() * x[image][None] + (1 - abar).sqrt() * eps_D
            with members.casts():
                if way.stacked:
                    predicted = vmap(members._functional, in_dims=(0, None, None))(members.stacked, noisy, t_D)
                else:
                    predicted = torch.stack([members.network(k, noisy, t_D) for k in range(len(members))])
            error = (eps_D - predicted.float()).reshape(len(members), -1).double()
            total[image] = error @ error.T / D
        return total

    return synchronised(work, way, lambda total: total.numpy())


def train_job(setting: Setting, params: ensdiff.Ensemble, way: Way) -> Job:
    """Build the job of one training step of all members, which returns their losses."""
    from .pytorch_training import loop_step, stacked_step

    if way.stacked:
        work = stacked_step(Members(params, way), setting, params.schedule)
    else:
        nets, optimizers = _trained(params, setting, way.channels_last)
        work = loop_step(Members(params, way, nets), optimizers, setting, params.schedule)
    return synchronised(work, way, lambda losses: losses.numpy())


_SHARED: dict[bool, tuple[ensdiff.Ensemble, list[Any], list[torch.optim.Optimizer]]] = {}


def _trained(params: ensdiff.Ensemble, setting: Setting, channels_last: bool) -> tuple[list[Any], list[Any]]:
    """Return the members and their optimisers, which ways share: a copy for each would not fit on a GPU."""
    known = _SHARED.get(channels_last)
    if known is None or known[0] is not params:
        nets = Members(params, Way("shared", channels_last=channels_last)).nets
        known = _SHARED[channels_last] = params, nets, [adam(net.parameters(), setting) for net in nets]
    return known[1], known[2]


def adam(parameters: Iterable[torch.Tensor], setting: Setting) -> torch.optim.Optimizer:
    """Return the optimiser of some parameters on the device."""
    on_gpu = device() == "cuda"
    return torch.optim.Adam(parameters, lr=setting.train.learning_rate, fused=on_gpu, capturable=on_gpu)


def release() -> None:
    """Give back the memory that nothing uses any more."""
    _SHARED.clear()
    gc.collect()
    if device() == "cuda":
        torch.cuda.empty_cache()


JOBS: dict[str, Callable[[Setting, ensdiff.Ensemble, Way], Job]] = {
    "train": train_job,
    "factual": factual_job,
    "landscape": landscape_job,
    "jacobian": jacobian_job,
    "loss": loss_job,
}
