"""Floating-point operations (FLOPs) of the U-Net and of the ensemble's steps, from the architecture alone.

Only XLA's convolutions and dots are counted. A convolution costs 2 h w C D per output pixel, including products with
the zero padding. A dense layer costs 2 C D per row. Attention over P pixels costs 4 P^2 C, plus its four dense layers.
Element-wise work (normalisation, swish, the optimiser, sums over members) is not counted. In predictions on CPUs, wide
layers execute 16 products for every 36 counted (`ensdiff.models.winograd`), because the counts are those of plain
convolutions. The other passes add, per layer:

- backward: the cost of one forward pass for the weight gradient and of another for the input gradient. The first
  convolution and the first time layer have no input gradient; each of attention's two products has two.
- tangent (forward mode with respect to the image): the cost of one forward pass; of two for attention's products, which
  are bilinear; nothing for the time layers.
- attention of one image after another: the backward pass recomputes its two products.
- rematerialisation: the backward pass recomputes the first convolution and the time layer of each residual block, but
  no layer after the last value that it needs.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ensdiff.models.attention import resolve_attention
from ensdiff.models.unet import UNetConfig


class Layer(NamedTuple):
    """FLOPs of one layer for one image: those of the forward pass, and those that each other pass adds."""

    name: str
    forward: int
    backward: int
    tangent: int
    recompute: int


class UNetFlops(NamedTuple):
    """FLOPs of one member for one image.

    Args:
        forward: the noise prediction.
        train: the forward and backward passes, including the recomputed part of the forward pass.
        tangent: one directional derivative of the prediction, without the prediction itself.
        recompute: the part of the forward pass that the backward pass recomputes, included in ``train``.
    """

    forward: int
    train: int
    tangent: int
    recompute: int


def unet_flops(model: UNetConfig, image_shape: tuple[int, int, int]) -> UNetFlops:
    """Return the FLOPs of one member's U-Net for one image; multiply them by the numbers of members and images.

    Args:
        model: the U-Net.
        image_shape: (H, W, C).

    Raises:
        ValueError: the image does not fit the U-Net.

    >>> flops = unet_flops(UNetConfig(channels=8, multipliers=(1,), middle_attention=False), (8, 8, 1))
    >>> flops.train < 3 * flops.forward  # the first layers have no input gradient
    True
    """
    model.check_image(*image_shape[:2])
    layers = list(unet_layers(model, image_shape))
    forward = sum(layer.forward for layer in layers)
    recompute = sum(layer.recompute for layer in layers)
    return UNetFlops(
        forward=forward,
        train=forward + sum(layer.backward for layer in layers) + recompute,
        tangent=sum(layer.tangent for layer in layers),
        recompute=recompute,
    )


def unet_layers(model: UNetConfig, image_shape: tuple[int, int, int]) -> Iterator[Layer]:
    """Yield every layer with counted FLOPs, in order of execution."""
    H, W, C = image_shape
    embedding = 4 * model.channels
    up_levels = model.attention_levels if model.attention_levels_up is None else model.attention_levels_up

    def conv(name, size, c, d, *, side=3, stride=1, before=1, again=False, first=False) -> Layer:
        taps = [((n + before + 1 - side) // stride + 1) * side for n in size]  # outputs and weights along an axis
        flops = 2 * c * d * taps[0] * taps[1]
        return Layer(name, flops, flops if first else 2 * flops, flops, flops if again else 0)

    def dense(name, rows, c, d, *, backward=2, tangent=1, again=False) -> Layer:
        flops = 2 * rows * c * d
        return Layer(name, flops, backward * flops, tangent * flops, flops if again else 0)

    def block(name: str, level: int, c: int, d: int, attend: bool) -> Iterator[Layer]:
        h, w = H >> level, W >> level
        yield conv(f"{name}/conv1", (h, w), c, d, again=model.remat)
        yield dense(f"{name}/time", 1, embedding, d, tangent=0, again=model.remat)
        yield conv(f"{name}/conv2", (h, w), d, d)
        if c != d:
            yield dense(f"{name}/skip", h * w, c, d)
        if attend:
            pixels = h * w
            for part in ("query", "key", "value", "out"):
                yield dense(f"{name}_attention/{part}", pixels, d, d)
            again = resolve_attention(model.attention) == "image"
            for part in ("logits", "mix"):
                yield dense(f"{name}_attention/{part}", pixels, pixels, d, tangent=2, again=again)

    yield dense("time1", 1, model.channels, embedding, backward=1, tangent=0)
    yield dense("time2", 1, embedding, embedding, tangent=0)
    yield conv("head", (H, W), C, model.channels, first=True)
    width, skips, last = model.channels, [model.channels], len(model.widths) - 1
    for level, d in enumerate(model.widths):
        for i in range(model.blocks):
            yield from block(f"down{level}_block{i}", level, width, d, level in model.attention_levels)
            width = d
            skips.append(width)
        if level < last:
            if model.downsample != "pool":
                before = 0 if model.downsample == "conv_end" else 1
                yield conv(f"down{level}_sample", (H >> level, W >> level), d, d, stride=2, before=before)
            skips.append(width)
    yield from block("middle_block0", last, width, width, model.middle_attention)
    yield from block("middle_block1", last, width, width, False)
    for level, d in reversed(list(enumerate(model.widths))):
        for i in range(model.blocks + 1):
            yield from block(f"up{level}_block{i}", level, width + skips.pop(), d, level in up_levels)
            width = d
        if level > 0 and model.upsample == "conv":  # at the lower resolution, see conv.upsampled_conv2d
            yield conv(f"up{level}_sample", (H >> level, W >> level), d, 4 * d, side=2)
    yield conv("tail", (H, W), width, C)


def train_step_flops(model: UNetConfig, image_shape: tuple[int, int, int], members: int, batch: int) -> int:
    """Return the FLOPs of a training step of ``members`` members with ``batch`` images each.

    For the FLOPs of one device, pass the members and images of that device.
    """
    return members * batch * unet_flops(model, image_shape).train


def landscape_step_flops(model: UNetConfig, image_shape: tuple[int, int, int], evaluations: int) -> int:
    """Return the FLOPs of a sampling step that evaluates single members ``evaluations`` times in total.

    Without padding, that is the sum over states of the number of members that each state keeps.
    """
    return evaluations * unet_flops(model, image_shape).forward


def jacobian_step_flops(
    model: UNetConfig,
    image_shape: tuple[int, int, int],
    members: int,
    tangents: int,
    samples: int,
) -> int:
    """Return the FLOPs of a sampling step of ``samples`` states that carry ``tangents`` tangents through ``members``.

    On each device, all K tangents pass through the members of that device: for its FLOPs, pass K as ``tangents`` and
    the number of its members as ``members``. Recomputation happens once for all tangents together.
    """
    flops = unet_flops(model, image_shape)
    return members * samples * (flops.forward + flops.recompute + tangents * flops.tangent)
