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
    "class_embed_type": _honoured(
        "what is added to the time embedding: null is a table of num_class_embeds rows, or nothing; identity is a "
        "vector of its width (`condition_width`)",
        None, "identity",
    ),
    "num_class_embeds": _honoured("rows of the table of classes; the last may be that of no class: `load(classes=)`"),
    "num_train_timesteps": _irrelevant("size of a learned time embedding, which is refused; the schedule has its own"),
    "decay": _irrelevant("how averaged weights were made: `EMAModel` writes it beside them"),
    "min_decay": _irrelevant("as decay"),
    "optimization_step": _irrelevant("as decay"),
    "update_after_step": _irrelevant("as decay"),
    "use_ema_warmup": _irrelevant("as decay"),
    "inv_gamma": _irrelevant("as decay"),
    "power": _irrelevant("as decay"),
}  # fmt: skip
"""``config.json``: arguments of diffusers' `UNet2DModel`."""

CONDITION_UNET: dict[str, Option] = {
    "_class_name": _fixed("the network's class", "UNet2DConditionModel"),
    **_METADATA,
    **{name: UNET[name] for name in (
        "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift",
    )},
    "down_block_types": _honoured("DownBlock2D or CrossAttnDownBlock2D, one per level"),
    "mid_block_type": _fixed("the middle block, with cross-attention", "UNetMidBlock2DCrossAttn"),
    "up_block_types": _honoured("UpBlock2D or CrossAttnUpBlock2D, one per level"),
    "only_cross_attention": _fixed("self-attention in each block", False),
    **{name: UNET[name] for name in (
        "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor", "dropout", "act_fn",
        "norm_num_groups", "norm_eps",
    )},
    "cross_attention_dim": _honoured("width of the tokens; a list holds one number for all levels"),
    "transformer_layers_per_block": _honoured("blocks of each transformer: a number, or a list with one per level"),
    "reverse_transformer_layers_per_block": _fixed("as many on the way up as on the way down", None),
    "encoder_hid_dim": _fixed("tokens as they are", None),
    "encoder_hid_dim_type": _fixed("tokens as they are", None),
    "attention_head_dim": _honoured("the *number* of attention heads, in spite of its name; a list has one per level"),
    "num_attention_heads": _fixed("heads by attention_head_dim", None),
    "dual_cross_attention": _fixed("one text encoder", False),
    "use_linear_projection": _honoured("dense layers around transformers instead of 1x1 convolutions", False, True),
    "class_embed_type": _fixed("no class beside the tokens", None),
    "addition_embed_type": _fixed("nothing is added to the time embedding (Stable Diffusion XL adds text_time)", None),
    "addition_time_embed_dim": _fixed("as addition_embed_type", None),
    "num_class_embeds": _fixed("no class beside the tokens", None),
    "upcast_attention": _irrelevant("attention weights are float32 here"),
    "resnet_time_scale_shift": UNET["resnet_time_scale_shift"],
    "resnet_skip_time_act": _fixed("swish before the time embedding's dense layer", False),
    "resnet_out_scale_factor": _fixed("no scaling of blocks", 1),
    "time_embedding_type": UNET["time_embedding_type"],
    "time_embedding_dim": UNET["time_embedding_dim"],
    "time_embedding_act_fn": _fixed("no other activation", None),
    "timestep_post_act": _fixed("no other activation", None),
    "time_cond_proj_dim": _fixed("no embedding of the guidance scale", None),
    "conv_in_kernel": _fixed("3x3", 3),
    "conv_out_kernel": _fixed("3x3", 3),
    "projection_class_embeddings_input_dim": _fixed("as addition_embed_type", None),
    "attention_type": _fixed("no gated attention to boxes", "default"),
    "class_embeddings_concat": _fixed("no class beside the tokens", False),
    "mid_block_only_cross_attention": _fixed("self-attention in each block", None, False),
    "cross_attention_norm": _fixed("tokens as they are", None),
    "addition_embed_type_num_heads": _irrelevant("of addition_embed_type only, which is refused"),
    **{name: UNET[name] for name in (
        "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
    )},
}  # fmt: skip
"""``config.json``: arguments of diffusers' `UNet2DConditionModel`."""

DIT: dict[str, Option] = {
    "_class_name": _fixed("the network's class", "DiTTransformer2DModel"),
    **_METADATA,
    "num_attention_heads": _honoured("attention heads"),
    "attention_head_dim": _honoured("channels per attention head"),
    "in_channels": _honoured("channels of an image; equal to out_channels"),
    "out_channels": _honoured("null or in_channels; twice as many would predict a variance too, which is refused"),
    "num_layers": _honoured("blocks"),
    "dropout": _fixed("no dropout", 0.0),
    "norm_num_groups": _irrelevant("not used by this class"),
    "attention_bias": _fixed("biases of queries, keys and values", True),
    "sample_size": _honoured("height and width"),
    "patch_size": _honoured("height and width of a patch"),
    "activation_fn": _fixed("the tanh form of GELU", "gelu-approximate"),
    "num_embeds_ada_norm": _honoured("classes; the table has one more row, for no class"),
    "upcast_attention": _irrelevant("attention weights are float32 here"),
    "norm_type": _fixed("adaLN-zero", "ada_norm_zero"),
    "norm_elementwise_affine": _fixed("no parameters of normalisation", False),
    "norm_eps": _honoured("epsilon of the normalisation before each MLP"),
}
"""``config.json``: arguments of diffusers' `DiTTransformer2DModel`."""

_CLIPPING = "sampling only: pass `SamplerConfig(clip=...)` to `ensdiff.sample`"
_SPACING = "sampling only: pass `SamplerConfig(spacing=...)` to `ensdiff.sample`"
_GRID = "sampling only: which levels it visits"
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_SOLVER = (
    "solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
)  # fmt: skip

SCHEDULER: dict[str, Option] = {
    "_class_name": _fixed(
        "variance preserving noise levels", "DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
        "PNDMScheduler", "LMSDiscreteScheduler",
    ),
    **_METADATA,
    "num_train_timesteps": _honoured("T"),
    "beta_start": _honoured("beta of the least noisy level"),
    "beta_end": _honoured("beta of the noisiest level"),
    "beta_schedule": _honoured(
        "`Schedule.kind`; the last is \"cosine\", which has no start and end", "linear", "scaled_linear",
        "squaredcos_cap_v2",
    ),
    "trained_betas": _fixed("beta by beta_schedule, not an explicit list", None),
    "rescale_betas_zero_snr": _honoured("`Schedule.zero_terminal_snr`", False, True),
    "prediction_type": _honoured(
        "`Schedule.prediction`; flow_prediction goes with use_flow_sigmas", "epsilon", "v_prediction", "sample",
        "flow_prediction",
    ),
    "predict_epsilon": _fixed("prediction_type in versions before 0.10", True),
    "use_flow_sigmas": _honoured("whether the process is a rectified flow after all", False, True),
    "flow_shift": _honoured("`Schedule.shift`, with use_flow_sigmas"),
    "timestep_type": _fixed("networks are told the number of the level", "discrete"),
    "variance_type": _fixed(
        "a fixed variance, not a predicted one; its value matters for sampling only: `SamplerConfig(variance=...)`",
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None,
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
    **{name: _irrelevant(_GRID) for name in _SIGMAS},
    **{name: _irrelevant("sampling only: pass `SamplerConfig` to `ensdiff.sample`") for name in (
        "interpolation_type", "skip_prk_steps", "sigma_min", "sigma_max", "use_lu_lambdas", "lambda_min_clipped",
        "use_dynamic_shifting", "time_shift_type", *_SOLVER,
    )},
}  # fmt: skip
"""``scheduler_config.json`` of diffusers' schedulers that preserve variance: what the members were trained with."""

FLOW: dict[str, Option] = {
    "_class_name": _fixed("rectified flow", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    **_METADATA,
    "num_train_timesteps": _honoured("T"),
    "shift": _honoured("`Schedule.shift`"),
    "use_dynamic_shifting": _fixed("one shift for all image sizes", False),
    "base_shift": _irrelevant("of dynamic shifting only"),
    "max_shift": _irrelevant("of dynamic shifting only"),
    "base_image_seq_len": _irrelevant("of dynamic shifting only"),
    "max_image_seq_len": _irrelevant("of dynamic shifting only"),
    "time_shift_type": _irrelevant("of dynamic shifting only"),
    "invert_sigmas": _fixed("sigma 1 is pure noise", False),
    "shift_terminal": _irrelevant("sampling only: at which sigma it ends"),
    "stochastic_sampling": _irrelevant("sampling only: pass `SamplerConfig` to `ensdiff.sample`"),
    **{name: _irrelevant(_GRID) for name in _SIGMAS},
}
"""``scheduler_config.json`` of diffusers' schedulers of rectified flow."""

EDM: dict[str, Option] = {
    "_class_name": _fixed(
        "the preconditioning of Karras et al.", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
    ),
    **_METADATA,
    "num_train_timesteps": _honoured("T"),
    "sigma_min": _honoured("`Schedule.sigma_min`"),
    "sigma_max": _honoured("`Schedule.sigma_max`"),
    "sigma_data": _honoured("`Schedule.sigma_data`"),
    "rho": _honoured("`Schedule.rho`"),
    "prediction_type": _fixed('`Schedule(prediction="edm")`', "epsilon"),
    "sigma_schedule": _irrelevant("sampling only: ensdiff samples on the grid of rho"),
    "thresholding": _irrelevant("sampling only; ensdiff has no dynamic thresholding"),
    "dynamic_thresholding_ratio": _irrelevant("as thresholding"),
    "sample_max_value": _irrelevant("as thresholding"),
    **{name: _irrelevant("sampling only: pass `SamplerConfig` to `ensdiff.sample`") for name in _SOLVER},
}
"""``scheduler_config.json`` of diffusers' EDM schedulers."""

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
