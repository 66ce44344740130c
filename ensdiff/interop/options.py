"""Every field of the configurations of other implementations, and how ensdiff treats it.

A field is *honoured* (it determines the ensemble), *fixed* (only values that match ensdiff's own mathematics are
accepted), or *irrelevant* (it does not affect what is loaded). A field in no table is rejected by name, so an option
that a later version adds is never silently dropped. docs/interop.md shows these tables.
"""

import reprlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Option(NamedTuple):
    """The treatment of one field.

    Args:
        use: ``"honoured"``, ``"fixed"`` or ``"irrelevant"``.
        why: the meaning of the field and, for an irrelevant one, where it is set in ensdiff.
        allowed: the accepted values; empty if any value is accepted.
    """

    use: Literal["honoured", "fixed", "irrelevant"]
    why: str
    allowed: tuple = ()


def _honoured(why: str, *allowed: Any) -> Option:
    return Option("honoured", why, allowed)


def _fixed(why: str, *allowed: Any) -> Option:
    return Option("fixed", why, allowed)


def _irrelevant(why: str) -> Option:
    return Option("irrelevant", why)


_METADATA = {
    "_diffusers_version": _irrelevant("which version wrote the file"),
    "_name_or_path": _irrelevant("the name or path from which its writer loaded it"),
    "_use_default_values": _irrelevant("which values its writer left at their defaults; they are in the file"),
}

UNET: dict[str, Option] = {
    "_class_name": _fixed("the network's class", "UNet2DModel"),
    **_METADATA,
    "sample_size": _honoured("height and width"),
    "in_channels": _honoured("channels of an image; equal to out_channels"),
    "out_channels": _honoured("channels of the predicted noise; equal to in_channels"),
    "center_input_sample": _fixed("the input as it is, in [-1, 1]", False),
    "time_embedding_type": _fixed("sinusoids", "positional"),
    "time_embedding_dim": _fixed("four times the first width", None),
    "freq_shift": _honoured("the slowest frequency of the sinusoids", 0, 1),
    "flip_sin_to_cos": _honoured("the order of the sinusoids", True, False),
    "down_block_types": _honoured("DownBlock2D or AttnDownBlock2D, one per level"),
    "mid_block_type": _fixed("the middle block", "UNetMidBlock2D"),
    "up_block_types": _honoured("UpBlock2D or AttnUpBlock2D, one per level"),
    "block_out_channels": _honoured("width of each level"),
    "layers_per_block": _honoured("residual blocks per level"),
    "mid_block_scale_factor": _fixed("no scaling of the middle block", 1),
    "downsample_padding": _honoured("1 pads all sides, 0 below and on the right only", 1, 0),
    "downsample_type": _fixed("a convolution of stride 2", "conv"),
    "upsample_type": _fixed("nearest neighbours, then a convolution", "conv"),
    "dropout": _honoured("rate while training"),
    "act_fn": _fixed("x * sigmoid(x), under either of its names", "silu", "swish"),
    "attention_head_dim": _honoured("channels per attention head; null is a single head"),
    "norm_num_groups": _honoured("groups of each group norm"),
    "attn_norm_num_groups": _fixed("the same groups in the middle attention", None),
    "norm_eps": _honoured("epsilon of each group norm"),
    "resnet_time_scale_shift": _fixed("the time embedding is added", "default"),
    "add_attention": _honoured("attention in the middle block", True, False),
    "class_embed_type": _fixed("unconditional", None),
    "num_class_embeds": _fixed("unconditional", None),
    "num_train_timesteps": _irrelevant("size of a learned time embedding, which is refused; the schedule has its own"),
    "decay": _irrelevant("how averaged weights were made: `EMAModel` writes it beside them"),
    "min_decay": _irrelevant("as decay"),
    "optimization_step": _irrelevant("as decay"),
    "update_after_step": _irrelevant("as decay"),
    "use_ema_warmup": _irrelevant("as decay"),
    "inv_gamma": _irrelevant("as decay"),
    "power": _irrelevant("as decay"),
}
"""``config.json``: arguments of diffusers' `UNet2DModel`."""

_CLIPPING = "sampling only: pass `SamplerConfig(clip=...)` to `ensdiff.sample`"
_SPACING = "sampling only: pass `SamplerConfig(spacing=...)` to `ensdiff.sample`"

SCHEDULER: dict[str, Option] = {
    "_class_name": _fixed("noise levels of Ho et al.", "DDPMScheduler", "DDIMScheduler"),
    **_METADATA,
    "num_train_timesteps": _honoured("T"),
    "beta_start": _honoured("beta of the least noisy level"),
    "beta_end": _honoured("beta of the noisiest level"),
    "beta_schedule": _fixed("beta is linear in t", "linear"),
    "trained_betas": _fixed("beta is linear in t, not an explicit list", None),
    "rescale_betas_zero_snr": _fixed("the noisiest level keeps a little signal", False),
    "prediction_type": _fixed("the network predicts the noise", "epsilon"),
    "predict_epsilon": _fixed("prediction_type in versions before 0.10", True),
    "variance_type": _fixed(
        "a fixed variance, not a predicted one; its value matters for sampling only: `SamplerConfig(variance=...)`",
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log",
    ),
    "clip_sample": _irrelevant(_CLIPPING),
    "clip_sample_range": _irrelevant(_CLIPPING + ", which clips to [-1, 1]"),
    "thresholding": _irrelevant("sampling only; ensdiff has no dynamic thresholding"),
    "dynamic_thresholding_ratio": _irrelevant("as thresholding"),
    "sample_max_value": _irrelevant("as thresholding"),
    "timestep_spacing": _irrelevant(_SPACING),
    "steps_offset": _irrelevant(_SPACING),
    "timestep_values": _irrelevant("sampling only, in versions before 0.4: which levels it visits"),
    "set_alpha_to_one": _irrelevant("sampling only: ensdiff's last step always ends at abar = 1"),
    "tensor_format": _irrelevant("NumPy or PyTorch, in versions before 0.5"),
}  # fmt: skip
"""``scheduler_config.json`` of diffusers' `DDPMScheduler` or `DDIMScheduler`: what the members were trained with."""

GENENS: dict[str, Option] = {
    "model_state_dict": _honoured("the member's weights, and by their shapes the U-Net"),
    "optimizer_state_dict": _irrelevant("the optimiser's moments; training is not continued"),
    "epoch": _irrelevant("when it was written"),
    "loss": _irrelevant("the training loss at that time"),
}
"""The dictionary in a GenEns checkpoint."""


def check_options(values: Mapping[str, Any], table: Mapping[str, Option], source: str) -> None:
    """Reject a configuration of another implementation that needs something ensdiff does not support.

    Raises:
        ValueError: a field is unknown or a value is not accepted. The message names the source and the field.
    """
    for name, value in values.items():
        option = table.get(name)
        if option is None:
            raise ValueError(
                f"{source}: {name}={reprlib.repr(value)} is unknown to ensdiff, so it is not ignored: expected fields "
                f"among {', '.join(table)}. Remove it if it has no effect"
            )
        if option.allowed and not any(value is a or (type(value) is not bool and value == a) for a in option.allowed):
            raise ValueError(
                f"{source}: {name}={value!r} is not supported: expected "
                f"{' or '.join(repr(a) for a in option.allowed)} ({option.why})"
            )
