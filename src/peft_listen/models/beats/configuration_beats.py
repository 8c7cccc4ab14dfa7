"""BEATs model configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from ..model_type import check_found, check_model_type


# Key of an original checkpoint's `cfg` -> (our field, default of the original code for an absent key).
ORIGINAL_FIELDS: dict[str, tuple[str, Any]] = {
    "embed_dim": ("patch_embedding_size", 512),
    "conv_bias": ("conv_bias", False),
    "encoder_layers": ("num_hidden_layers", 12),
    "encoder_embed_dim": ("hidden_size", 768),
    "encoder_ffn_embed_dim": ("intermediate_size", 3072),
    "encoder_attention_heads": ("num_attention_heads", 12),
    "layer_norm_first": ("layer_norm_first", False),
    "deep_norm": ("deep_norm", False),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "encoder_layerdrop": ("layerdrop", 0.0),
    "dropout_input": ("feat_proj_dropout", 0.0),
    "conv_pos": ("num_conv_pos_embeddings", 128),
    "conv_pos_groups": ("num_conv_pos_embedding_groups", 16),
    "relative_position_embedding": ("use_relative_position_bias", False),
    "num_buckets": ("relative_attention_num_buckets", 320),
    "max_distance": ("relative_attention_max_distance", 1280),
    "gru_rel_pos": ("use_gated_position_bias", False),
    "predictor_dropout": ("final_dropout", 0.1),
}
# Activations that have the same name in the original code and in transformers.
ORIGINAL_ACTIVATIONS = ("gelu", "relu")
# Number of classes in the original code if `predictor_class` is absent (AudioSet).
ORIGINAL_PREDICTOR_CLASS = 527


@strict
class BeatsConfig(PreTrainedConfig):
    r"""
    Configuration of a [`BeatsModel`]. The defaults are the values of the released BEATs_iter3+ (AS2M) checkpoint of
    microsoft/unilm (arXiv 2212.09058): 90 M parameters, 12 layers of width 768.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the encoder layers.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads; must divide `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward layers.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers, a key of transformers' `ACT2FN`. Original checkpoints have `"gelu"`
            or `"relu"`.
        hidden_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the positional convolution, after attention and after the feed-forward layer.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the attention probabilities.
        activation_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the activation of the feed-forward layer.
        feat_proj_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the projected patch embeddings.
        final_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before the class head of [`BeatsForAudioClassification`].
        layerdrop (`float`, *optional*, defaults to 0.05):
            Probability of skipping a whole layer in training.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every layer normalization.
        num_mel_bins (`int`, *optional*, defaults to 128):
            Mel bins of one input frame; a multiple of `patch_size`.
        patch_size (`int`, *optional*, defaults to 16):
            Side of the square patches (frames by mel bins) that become one token each.
        patch_embedding_size (`int`, *optional*, defaults to 512):
            Width of the patch embeddings. If it differs from `hidden_size`, a linear layer maps them to `hidden_size`.
        conv_bias (`bool`, *optional*, defaults to `False`):
            Whether the patch embedding has a bias.
        num_conv_pos_embeddings (`int`, *optional*, defaults to 128):
            Kernel size of the positional convolution over the tokens.
        num_conv_pos_embedding_groups (`int`, *optional*, defaults to 16):
            Groups of the positional convolution; must divide `hidden_size`.
        use_relative_position_bias (`bool`, *optional*, defaults to `True`):
            Whether a learned bias by bucketed distance, shared by all layers, is added to the attention logits.
        relative_attention_num_buckets (`int`, *optional*, defaults to 320):
            Number of distance buckets, half of them for each direction.
        relative_attention_max_distance (`int`, *optional*, defaults to 800):
            Distance in tokens from which all distances share the last bucket.
        use_gated_position_bias (`bool`, *optional*, defaults to `True`):
            Whether each layer scales the position bias by a gate computed from the query (`gru_rel_pos` in the
            original). Ignored if `use_relative_position_bias` is `False`.
        deep_norm (`bool`, *optional*, defaults to `True`):
            Whether residuals are scaled by `(2 * num_hidden_layers) ** 0.25` (DeepNorm, arXiv 2203.00555).
        layer_norm_first (`bool`, *optional*, defaults to `False`):
            Whether the layers normalize their input (pre-norm) instead of their output (post-norm).

    Raises:
        `ValueError`: if fields contradict one another; the message names them, with their values.

    Example:

    ```python
    >>> from peft_listen import BeatsConfig, BeatsModel

    >>> configuration = BeatsConfig(num_hidden_layers=2)
    >>> model = BeatsModel(configuration)
    >>> configuration.get_num_tokens(998)  # 10 s of audio
    496
    ```"""

    model_type = "beats"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    feat_proj_dropout: float | int = 0.0
    final_dropout: float | int = 0.0
    layerdrop: float | int = 0.05
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    num_mel_bins: int = 128
    patch_size: int = 16
    patch_embedding_size: int = 512
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    use_relative_position_bias: bool = True
    relative_attention_num_buckets: int = 320
    relative_attention_max_distance: int = 800
    use_gated_position_bias: bool = True
    deep_norm: bool = True
    layer_norm_first: bool = False

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_found(pretrained_model_name_or_path, config_dict)
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        check_model_type(cls, config_dict)
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for field, divisor in (
            ("hidden_size", "num_attention_heads"),
            ("hidden_size", "num_conv_pos_embedding_groups"),
            ("num_mel_bins", "patch_size"),
        ):
            if getattr(self, divisor) < 1 or getattr(self, field) % getattr(self, divisor):
                raise ValueError(
                    f"`{field}` ({getattr(self, field)}) must be a multiple of `{divisor}` ({getattr(self, divisor)})."
                )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` {self.hidden_act!r} is not known; expected one of {', '.join(ACT2FN)}.")
        if self.num_mel_bins > self.patch_size**2:
            raise ValueError(
                f"`num_mel_bins` ({self.num_mel_bins}) must not exceed the square of `patch_size` ({self.patch_size}): "
                "the token mask needs at least one frame per token."
            )
        if self.deep_norm and self.layer_norm_first:
            raise ValueError(
                "`deep_norm` scales the residuals of post-norm layers and cannot be combined with `layer_norm_first`; "
                "set one of the two to False."
            )
        exact_buckets = self.relative_attention_num_buckets // 4
        if self.use_relative_position_bias and not 1 <= exact_buckets < self.relative_attention_max_distance:
            raise ValueError(
                "A quarter of `relative_attention_num_buckets`"
                f" ({self.relative_attention_num_buckets}) must be at least 1 and below"
                f" `relative_attention_max_distance` ({self.relative_attention_max_distance})."
            )

    def get_num_tokens(self, num_frames: int) -> int:
        """
        Number of tokens for `num_frames` filter-bank frames (10 ms each): one per whole patch. Trailing frames that do
        not fill a patch are dropped. 10 s are 998 frames and 496 tokens.
        """
        return (num_frames // self.patch_size) * (self.num_mel_bins // self.patch_size)

    @classmethod
    def from_original(cls, cfg: dict[str, Any]) -> "BeatsConfig":
        """
        Builds the configuration from the `cfg` of an original BEATs checkpoint (microsoft/unilm, `beats/`).

        Absent keys have the defaults of the original code, which differ from the values of the released checkpoints and
        from the defaults of this class. Keys that only affect the original's training are ignored.

        Args:
            cfg (`dict`): The checkpoint's `cfg`.

        Raises:
            `ValueError`: if `input_patch_size` is missing, the activation is not supported, or the values contradict one
                another.
        """
        if not isinstance(cfg, dict):
            raise ValueError(f"Expected the `cfg` dict of an original BEATs checkpoint, got {type(cfg).__name__}.")
        patch_size = cfg.get("input_patch_size", -1)
        if not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(
                f"`input_patch_size` must be given as a positive integer in the original `cfg`, got {patch_size!r}; "
                "released checkpoints have 16."
            )
        activation = cfg.get("activation_fn", "gelu")
        if activation not in ORIGINAL_ACTIVATIONS:
            raise ValueError(
                f"`activation_fn` {activation!r} of the original `cfg` is not supported; expected one of "
                f"{', '.join(map(repr, ORIGINAL_ACTIVATIONS))} (released checkpoints have 'gelu')."
            )
        fields = {field: cfg.get(key, default) for key, (field, default) in ORIGINAL_FIELDS.items()}
        if cfg.get("finetuned_model", False):
            fields["num_labels"] = cfg.get("predictor_class", ORIGINAL_PREDICTOR_CLASS)
            fields["problem_type"] = "multi_label_classification"
        try:
            return cls(patch_size=patch_size, hidden_act=activation, **fields)
        except StrictDataclassError as error:
            raise ValueError(f"The original `cfg` has a value of the wrong type. {error}") from error


__all__ = ["BeatsConfig"]
