"""PyTorch BEATs model (arXiv 2212.09058), for checkpoints of microsoft/unilm `beats/`."""

import math
import os
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..complete_weights import CompleteWeightsMixin
from .configuration_beats import BeatsConfig
from .original_checkpoint import from_original_state_dict, has_class_head, read_original_checkpoint, set_labels


def relative_position_bucket(relative_position: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """
    Bucket of a relative position: one bucket per distance up to a quarter of `num_buckets`, then buckets whose width
    grows with the logarithm of the distance; the lower half of the buckets for keys at or before the query, the upper
    half for keys after it (microsoft/unilm, `beats/`, after T5).

    Args:
        relative_position (`torch.LongTensor` of any shape): Position of the key minus position of the query.
        num_buckets (`int`): Number of buckets of both directions together.
        max_distance (`int`): Distance from which the last bucket of a direction is used.

    Returns:
        `torch.LongTensor` of the same shape, with values in `[0, num_buckets)`.
    """
    buckets_per_direction = num_buckets // 2
    num_exact = buckets_per_direction // 2
    distance = relative_position.abs()
    # Below `num_exact` this value is not used; the clamp keeps the logarithm finite there.
    log_ratio = torch.log(distance.clamp(min=num_exact).float() / num_exact) / math.log(max_distance / num_exact)
    logarithmic = num_exact + (log_ratio * (buckets_per_direction - num_exact)).long()
    bucket = torch.where(distance < num_exact, distance, logarithmic.clamp(max=buckets_per_direction - 1))
    return bucket + (relative_position > 0).long() * buckets_per_direction


class BeatsPatchEmbeddings(nn.Module):
    """Splits the filter bank into patches and embeds each as a token; tokens are ordered by time, eight per column."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            1, config.patch_embedding_size, config.patch_size, stride=config.patch_size, bias=config.conv_bias
        )
        self.layer_norm = nn.LayerNorm(config.patch_embedding_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Linear(config.patch_embedding_size, config.hidden_size)
            if config.patch_embedding_size != config.hidden_size
            else nn.Identity()
        )
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        input_values = input_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(input_values.unsqueeze(1))  # [batch, channels, columns, rows]
        hidden_states = self.layer_norm(patches.flatten(2).transpose(1, 2))
        return self.dropout(self.projection(hidden_states))


class BeatsPositionalConvEmbedding(nn.Module):
    """Adds position information by a wide grouped convolution over the tokens, weight-normalized per kernel position."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        kernel_size = config.num_conv_pos_embeddings
        self.conv = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(
                config.hidden_size,
                config.hidden_size,
                kernel_size,
                padding=kernel_size // 2,
                groups=config.num_conv_pos_embedding_groups,
            ),
            dim=2,
        )
        self.activation = nn.GELU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = self.conv(hidden_states.transpose(1, 2))
        # An even kernel size gives one output more than there are tokens.
        positions = positions[:, :, : hidden_states.shape[1]]
        return hidden_states + self.activation(positions).transpose(1, 2)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    # The query is scaled before the product, which could otherwise overflow in half precision.
    attn_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if position_bias is not None:
        attn_weights = attn_weights + position_bias
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


class BeatsAttention(nn.Module):
    """Self-attention with a position bias on its logits, scaled by a gate that depends on the query."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.has_gate = config.use_relative_position_bias and config.use_gated_position_bias
        if self.has_gate:
            self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, config.num_attention_heads, 1, 1))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(head_shape).transpose(1, 2)  # [batch, heads, tokens, head_dim]
        key = self.k_proj(hidden_states).view(head_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)

        if position_bias is not None:
            if self.has_gate:
                position_bias = self._gate(query) * position_bias
            position_bias = position_bias.to(query.dtype)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=position_bias,
            **kwargs,
        )
        return self.out_proj(attn_output.reshape(*input_shape, -1)), attn_weights

    def _gate(self, query: torch.Tensor) -> torch.Tensor:
        gates = self.gru_rel_pos_linear(query).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid()
        update, reset = gates.split(1, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0  # [batch, heads, tokens, 1]


class BeatsEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.layer_norm_first = config.layer_norm_first
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states * self.residual_scale
        if self.layer_norm_first:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, attention_mask, position_bias, **kwargs)
        hidden_states = residual + self.dropout(hidden_states)
        if not self.layer_norm_first:
            hidden_states = self.self_attn_layer_norm(hidden_states)

        residual = hidden_states * self.residual_scale
        if self.layer_norm_first:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.fc2(self.activation_dropout(self.activation(self.fc1(hidden_states))))
        hidden_states = residual + self.dropout(hidden_states)
        if not self.layer_norm_first:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states


class BeatsEncoder(nn.Module):
    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv_embed = BeatsPositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        if config.use_relative_position_bias:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_attention_heads
            )
        self.layers = nn.ModuleList([BeatsEncoderLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        if token_mask is not None:
            hidden_states = hidden_states.masked_fill(~token_mask.unsqueeze(-1), 0.0)
        hidden_states = self.pos_conv_embed(hidden_states)
        if not self.config.layer_norm_first:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)

        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=token_mask
        )
        position_bias = None
        if self.config.use_relative_position_bias:
            position_bias = self._position_bias(hidden_states.shape[1], hidden_states.device)
        # Sharded layers must run on every process, so no layer is skipped then.
        is_sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)
        layerdrop = self.config.layerdrop if self.training and not is_sharded else 0.0
        for layer in self.layers:
            if layerdrop > 0.0 and torch.rand([]) < layerdrop:
                continue
            hidden_states = layer(hidden_states, attention_mask, position_bias, **kwargs)

        if self.config.layer_norm_first:
            hidden_states = self.layer_norm(hidden_states)
        return hidden_states

    def _position_bias(self, num_tokens: int, device: torch.device) -> torch.Tensor:
        """Bias per head, query and key, of shape `(1, heads, tokens, tokens)`."""
        relative_position = torch.arange(1 - num_tokens, num_tokens, device=device)
        buckets = relative_position_bucket(
            relative_position, self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        )
        bias_by_distance = self.relative_attention_bias(buckets).T  # [heads, 2 * tokens - 1]
        # Window i holds the relative positions of the keys to query `num_tokens - 1 - i`.
        return bias_by_distance.unfold(-1, num_tokens, 1).flip(1).unsqueeze(0)


class BeatsPreTrainedModel(CompleteWeightsMixin):
    """Base class of the BEATs models: weight initialization and loading of original checkpoints."""

    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsPatchEmbeddings", "BeatsPositionalConvEmbedding", "BeatsEncoderLayer"]
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": BeatsEncoderLayer, "attentions": BeatsAttention}
    _input_embed_layer = "patch_embedding"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BeatsAttention) and module.has_gate:
            init.ones_(module.gru_rel_pos_const)
        elif isinstance(module, ParametrizationList):
            # Weight normalization stores the magnitude per kernel position separately from the direction. For models
            # outside its own package, transformers calls this method only with the module that has the parameters.
            magnitude, direction = module.parameters()
            init.normal_(direction, mean=0.0, std=math.sqrt(4 / (direction.shape[0] * direction.shape[2])))
            init.copy_(magnitude, direction.norm(dim=(0, 1), keepdim=True))

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation is not None and is_flash_attention_requested(
            requested_attention_implementation=attn_implementation
        ):
            raise ValueError(
                f"BEATs adds a position bias to the attention logits, which {attn_implementation!r} does not support. "
                'Use `attn_implementation="sdpa"` or `"eager"`.'
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def from_original_checkpoint(cls, checkpoint_path: str | os.PathLike[str]) -> Self:
        """
        Loads a checkpoint in the original format: the `{"cfg", "model"[, "label_dict"]}` file of microsoft/unilm
        `beats/`. The file is read with `weights_only=True`, so pickled code is never run.

        [`BeatsModel`] ignores the class head of a fine-tuned checkpoint; [`BeatsForAudioClassification`] requires it and
        takes the labels from `label_dict`.

        Args:
            checkpoint_path (`str` or `os.PathLike`): Path of the file.

        Returns:
            The model in evaluation mode, with float32 weights on the CPU.

        Raises:
            `OSError`: if the file is missing, cannot be read, or contains more than tensors and plain values.
            `ValueError`: if it is not a BEATs checkpoint, its configuration is not supported, or weights are missing,
                unexpected or of the wrong shape; the message lists them.
        """
        return cls.from_original(read_original_checkpoint(checkpoint_path))

    @classmethod
    def from_original(cls, checkpoint: dict[str, Any]) -> Self:
        """
        Builds the model from an original checkpoint in memory; see [`~BeatsModel.from_original_checkpoint`].

        Args:
            checkpoint (`dict`): The dicts `cfg` and `model`, and optionally `label_dict`.

        Raises:
            `ValueError`: if the configuration is not supported, or the weights do not fit it.
        """
        config = BeatsConfig.from_original(checkpoint["cfg"])
        model = cls(config)
        expected = model.state_dict()
        if has_class_head(expected):
            if not checkpoint["cfg"].get("finetuned_model", False):
                raise ValueError(
                    "The original checkpoint is not fine-tuned and has no class head (`finetuned_model` is not set in "
                    "its `cfg`). Load it with `BeatsModel`."
                )
            set_labels(config, checkpoint.get("label_dict"))
        model.load_state_dict(from_original_state_dict(checkpoint["model"], expected, config, cls.__name__))
        return model.eval()


class BeatsModel(BeatsPreTrainedModel):
    r"""
    The BEATs encoder: maps a filter bank to one hidden state per token. A token represents a patch of 16 frames by 16 mel
    bins. Tokens are ordered by time, and the eight patches of a column from low to high frequencies: about 50 tokens per
    second.

    Written from a description of the behavior of microsoft/unilm `beats/` (MIT).
    [`~BeatsModel.from_original_checkpoint`] loads its checkpoints.

    Args:
        config ([`BeatsConfig`]): Configuration of the model.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.embeddings = BeatsPatchEmbeddings(config)
        self.encoder = BeatsEncoder(config)
        self.post_init()

    def get_patch_attention_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Converts a frame mask to a token mask, by the original's rule: with T frames and S tokens, token i is real if and
        only if one of the frames `i * (T // S), ..., (i + 1) * (T // S) - 1` is. The rule ignores the columns of patches,
        so in the last column of a clip the tokens of low frequencies can be real and those of high frequencies padding.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch, frames)`): 1 for real frames, 0 for padding.

        Returns:
            `torch.BoolTensor` of shape `(batch, tokens)`, True for real tokens.

        Raises:
            `ValueError`: if there are fewer frames than in one patch.
        """
        num_tokens = self._num_tokens(attention_mask.shape[1])
        frames_per_token = attention_mask.shape[1] // num_tokens
        frames = attention_mask[:, : num_tokens * frames_per_token].bool()
        return frames.unflatten(1, (num_tokens, frames_per_token)).any(dim=-1)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Args:
            input_values (`torch.FloatTensor` of shape `(batch, frames, num_mel_bins)`):
                Normalized log-mel filter bank, 10 ms per frame, at least 16 frames. See [`BeatsFeatureExtractor`].
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding. Padding tokens are not attended to, but their outputs are computed and
                returned too.
            output_hidden_states (`bool`, *optional*):
                Whether to return `hidden_states`: the input of the first layer and the output of each layer.
            output_attentions (`bool`, *optional*):
                Whether to return the attention probabilities; requires `attn_implementation="eager"`.

        Returns:
            [`~modeling_outputs.BaseModelOutput`] with `last_hidden_state` of shape `(batch, tokens, hidden_size)`, where
            `tokens = 8 * (frames // 16)`. In a pre-norm model it is the layer-normalized last entry of
            `hidden_states`, otherwise that entry.

        Raises:
            `ValueError`: if a shape differs from those above.
        """
        if input_values.ndim != 3 or input_values.shape[-1] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_values` must have shape (batch, frames, {self.config.num_mel_bins}), got "
                f"{tuple(input_values.shape)}. Compute them with `BeatsFeatureExtractor`."
            )
        self._num_tokens(input_values.shape[1])
        token_mask = None
        if attention_mask is not None:
            if attention_mask.shape != input_values.shape[:2]:
                raise ValueError(
                    "`attention_mask` must have one value per frame of `input_values`: expected shape "
                    f"{tuple(input_values.shape[:2])}, got {tuple(attention_mask.shape)}."
                )
            token_mask = self.get_patch_attention_mask(attention_mask)
        hidden_states = self.encoder(self.embeddings(input_values), token_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _num_tokens(self, num_frames: int) -> int:
        num_tokens = self.config.get_num_tokens(num_frames)
        if num_tokens == 0:
            raise ValueError(
                f"BEATs needs at least {self.config.patch_size} frames, got {num_frames}. Pad the waveform with zeros."
            )
        return num_tokens


class BeatsForAudioClassification(BeatsPreTrainedModel):
    r"""
    BEATs with a linear class head on every token; the logits of the real tokens are averaged. Fine-tuned checkpoints
    (AudioSet, 527 classes) are multi-label: the sigmoid of a logit is the probability of its class.

    Args:
        config ([`BeatsConfig`]): Configuration of the model; `num_labels` is the number of classes.
    """

    # A checkpoint without a class head gets a new one, to be trained.
    _new_weights = ("classifier.",)

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.beats = BeatsModel(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_values (`torch.FloatTensor` of shape `(batch, frames, num_mel_bins)`):
                Normalized log-mel filter bank. See [`BeatsFeatureExtractor`].
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding.
            labels (`torch.Tensor` of shape `(batch, num_labels)` or `(batch,)`, *optional*):
                One row of zeros and ones per clip for multi-label classification (binary cross-entropy). If
                `config.problem_type` is not `"multi_label_classification"`, also class indices of shape `(batch,)`
                (cross-entropy), as in transformers' sequence classifiers.

        Returns:
            [`~modeling_outputs.SequenceClassifierOutput`] with `logits` of shape `(batch, num_labels)`, before the
            sigmoid, and `loss` if `labels` are given.

        Raises:
            `ValueError`: if a shape differs from those above.
        """
        outputs = self.beats(input_values, attention_mask=attention_mask, **kwargs)
        token_logits = self.classifier(self.dropout(outputs.last_hidden_state))  # [batch, tokens, num_labels]
        if attention_mask is None:
            logits = token_logits.mean(dim=1)
        else:
            weights = self.beats.get_patch_attention_mask(attention_mask).to(token_logits.dtype).unsqueeze(-1)
            logits = (token_logits * weights).sum(dim=1) / weights.sum(dim=1)

        loss = None
        if labels is not None:
            if self.config.problem_type == "multi_label_classification":
                labels = labels.to(logits.dtype)
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["BeatsForAudioClassification", "BeatsModel", "BeatsPreTrainedModel", "relative_position_bucket"]
