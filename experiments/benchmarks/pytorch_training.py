"""One training step of all members in PyTorch: noise, loss, gradient, Adam. Losses stay on the device until the end."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.func import grad_and_value, vmap

import ensdiff

from .jobs import Setting
from .pytorch import Members, adam


def loop_step(
    members: Members, optimizers: Sequence[torch.optim.Optimizer], setting: Setting, schedule: ensdiff.Schedule
) -> Callable[[], torch.Tensor]:
    """Return a function that makes a step of one member after another and returns their losses."""
    images, draw = _draws(members, setting, schedule)

    def work():
        losses = []
        for k, (image, optimizer) in enumerate(zip(images, optimizers, strict=True)):
            x, t, noise = draw(image)
            with members.casts():
                predicted = members.network(k, x, t)
            loss = ((predicted.float() - noise) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return work


def stacked_step(members: Members, setting: Setting, schedule: ensdiff.Schedule) -> Callable[[], torch.Tensor]:
    """Return a function that makes a step of all members at once, by `torch.func.vmap` over stacked parameters."""
    state = members.stacked
    leaves = [torch.nn.Parameter(value) for value in state.values()]
    names = list(state)
    optimizer = adam(leaves, setting)
    images, draw = _draws(members, setting, schedule)

    def loss_of(state, x, t, noise):
        return ((members._functional(state, x, t).float() - noise) ** 2).mean()

    def work():
        x, t, noise = (torch.stack(parts) for parts in zip(*map(draw, images), strict=True))
        with torch.no_grad(), members.casts():
            values = {name: leaf.detach() for name, leaf in zip(names, leaves, strict=True)}
            gradients, losses = vmap(grad_and_value(loss_of), randomness="different")(values, x, t, noise)
        for name, leaf in zip(names, leaves, strict=True):
            leaf.grad = gradients[name]
        optimizer.step()
        return losses

    return work


def _draws(members: Members, setting: Setting, schedule: ensdiff.Schedule) -> tuple[list[torch.Tensor], Callable]:
    """Return each member's images, and a function from images to noisy images, noise levels and noise."""
    shape = setting.members, setting.batch, *setting.image_shape
    images = np.random.default_rng(0).random(shape, np.float32) * 2 - 1
    abar = torch.from_numpy(schedule.abar_T.astype(np.float32)).to(members.device)

    def draw(image):
        t = torch.randint(0, len(abar), (len(image),), device=image.device)
        noise, a = torch.randn_like(image), abar[t][:, None, None, None]
        return a.sqrt() * image + (1 - a).sqrt() * noise, t, noise

    return [members.place(array) for array in images], draw
