"""AudioListen: a causal language model that hears."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested

from ..beats.modeling_beats import BeatsModel
from .audio_tokens import check_token_count
from .configuration_audio_listen import AudioListenConfig
from .frozen_references import load_config, resolve_adapter
from .generation_audio_listen import AudioListenGenerationMixin
from .language_head import build_language_head, scale_logits
from .modeling_audio_encoders import AudioEncoderModel, AudioFeatures, join_chunks
from .modeling_composed import ComposedModel
from .modeling_pretrained import AudioListenPreTrainedModel
from .modeling_window_qformer import WindowQFormerProjector


@dataclass
class AudioListenModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    Args:
        audio_hidden_states (`torch.Tensor` of shape `(num_audio_tokens, hidden_size)`, *optional*):
            The embeddings that replaced the audio tokens, in the order of the tokens.
    """

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class AudioListenCausalLMOutputWithPast(ModelOutput):
    r"""
    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
            Language modeling loss (for next-token prediction).
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Prediction scores of the language modeling head.
        past_key_values (`Cache`, *optional*, returned when `use_cache=True` is passed):
            Keys and values of the language model's layers.
        audio_hidden_states (`torch.Tensor` of shape `(num_audio_tokens, hidden_size)`, *optional*):
            The embeddings that replaced the audio tokens, in the order of the tokens.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: torch.Tensor | None = None


class AudioListenModel(AudioEncoderModel):
    """
    The audio encoders, the projector and the language model without its head.

    The encoders are frozen: they start without gradients, run under `torch.no_grad()` as long as none of their
    parameters requires gradients, and then stay in evaluation mode after `train()` too.

    Args:
        config ([`AudioListenConfig`]): Configuration of all parts.
    """

    def __init__(self, config: AudioListenConfig) -> None:
        super().__init__(config)
        for sub_config in (config.sound_config, config.qformer_config):
            if sub_config is not None and is_flash_attention_requested(sub_config):
                # Flash attention takes neither the position bias of the one nor the float32 of the other.
                sub_config._attn_implementation = "sdpa"
        self.speech_tower = WhisperEncoder(config.speech_config)
        self.sound_tower = BeatsModel(config.sound_config) if config.sound_config is not None else None
        self.multi_modal_projector = WindowQFormerProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()
        self.freeze()
        self.train(self.training)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint of this model or of [`AudioListenForCausalLM`], see there."""
        if pretrained_model_name_or_path is not None:
            base, _ = resolve_adapter(pretrained_model_name_or_path, kwargs)
            if load_config(base, kwargs).frozen_references:
                return AudioListenForCausalLM.from_pretrained(pretrained_model_name_or_path, **kwargs).model
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Encodes audio and projects it into the embedding space of the language model.

        Takes either chunks of audio (the first four arguments, see [`~AudioListenModel.get_encoder_features`]) or what
        the encoders made of them (the last three, see [`AudioFeatures`]).

        Args:
            kwargs: `output_hidden_states` and `output_attentions` ask for those of the speech encoder. They are kept
                for all chunks at once, so that memory grows with the length of the audio.

        Returns:
            `BaseModelOutputWithPooling`: whose `pooler_output` of shape `(num_audio_tokens, hidden_size)` holds one
            embedding for each audio token, chunk after chunk. `hidden_states` of shape `(chunks, frames, speech_size)`
            and `attentions` of shape `(chunks, heads, frames, frames)` hold those of each layer of the speech encoder,
            if asked for; the last hidden state is the encoder's output.

        Raises:
            `ValueError`: if both kinds of input or none are given, or a feature has the wrong size.
        """
        if (input_features is None) == (speech_features is None):
            raise ValueError(
                "Pass either `input_features` (audio) or `speech_features` (what the encoders made of it), got "
                f"{'neither' if input_features is None else 'both'}."
            )
        if speech_features is not None:
            if audio_features_mask is None:
                raise ValueError("`speech_features` was given without `audio_features_mask`, which belongs to it.")
            features = AudioFeatures(speech_features, sound_features, audio_features_mask)
            return BaseModelOutputWithPooling(pooler_output=self._project(features))
        assert input_features is not None
        projected, hidden_states, attentions = [], [], []
        for features, speech in self._encode(
            input_features, input_features_mask, sound_input_values, sound_attention_mask, **kwargs
        ):
            projected.append(self._project(features))
            if speech.hidden_states is not None:
                hidden_states.append(speech.hidden_states)
            if speech.attentions is not None:
                attentions.append(speech.attentions)
        return BaseModelOutputWithPooling(
            pooler_output=torch.cat(projected),
            hidden_states=join_chunks(hidden_states),
            attentions=join_chunks(attentions),
        )

    def _project(self, features: AudioFeatures) -> torch.Tensor:
        speech, sound, mask = features
        _check_size("speech_features", speech, self.config.speech_config.hidden_size)
        if sound is not None and self.config.sound_config is not None:
            _check_size("sound_features", sound, self.config.sound_config.hidden_size)
        return self.multi_modal_projector(
            speech,
            sound,
            sound_mask=None if sound is None else (sound != 0).any(-1),
            num_windows=self._num_windows(mask.sum(-1)),
        )

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, audio_features: torch.Tensor
    ) -> torch.BoolTensor:
        """
        Where the audio tokens stand, from `input_ids` or, without them, from `inputs_embeds`.

        Returns:
            `torch.BoolTensor` of the shape of `inputs_embeds`.

        Raises:
            `ValueError`: if there are not as many audio tokens as `audio_features`, or these are of another width; the
                message names both numbers.
        """
        if self.config.audio_token_id is None:
            raise ValueError(
                "Audio was given, but `config.audio_token_id` is not set. Set it to the id of the tokenizer's audio token."
            )
        if input_ids is None:
            audio_token = torch.tensor(self.config.audio_token_id, device=inputs_embeds.device)
            is_audio = (inputs_embeds == self.get_input_embeddings()(audio_token)).all(-1)
        else:
            is_audio = (input_ids == self.config.audio_token_id).to(inputs_embeds.device)
        check_token_count(int(is_audio.sum()), len(audio_features))
        if audio_features.shape[-1] != inputs_embeds.shape[-1]:
            raise ValueError(
                f"The audio embeddings are {audio_features.shape[-1]} wide, but those of this language model "
                f"{inputs_embeds.shape[-1]}. They were made by another model; an assistant model must be of the same "
                "width, or a language model of text alone."
            )
        return is_audio.unsqueeze(-1).expand_as(inputs_embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | AudioListenModelOutputWithPast:
        """The arguments are those of [`AudioListenForCausalLM.forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        audio_embeds = None
        if mm_encoder_outputs is not None and "audio" in mm_encoder_outputs:
            audio_embeds = mm_encoder_outputs["audio"]["pooler_output"].flatten(0, -2)
        elif input_features is not None or speech_features is not None:
            audio_embeds = self.get_audio_features(
                input_features,
                input_features_mask,
                sound_input_values,
                sound_attention_mask,
                speech_features,
                sound_features,
                audio_features_mask,
                return_dict=True,
            ).pooler_output
        if audio_embeds is not None:
            is_audio = self.get_placeholder_mask(input_ids, inputs_embeds, audio_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(
                is_audio, audio_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
            )
        elif input_ids is not None and self.config.audio_token_id is not None and not torch.compiler.is_compiling():
            if past_key_values is None or past_key_values.get_seq_length() == 0:
                check_token_count(int((input_ids == self.config.audio_token_id).sum()), 0)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return AudioListenModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_embeds,
        )


class AudioListenForCausalLM(ComposedModel, AudioListenGenerationMixin):
    """
    A causal language model that hears: [`AudioListenModel`] with the language model's head.

    Encoders, windows and Q-Former are those of SALMONN (arXiv 2310.13289), which LiSTEN (arXiv 2505.18517) builds on.
    It departs from SALMONN in two things: a clip has only as many audio tokens as it lasts, where SALMONN always makes
    the 88 of 30 s; and what is heard in a clip does not depend on the other clips of its batch
    (`config.group_sound_by_length`).

    Args:
        config ([`AudioListenConfig`]): Configuration of all parts.

    Raises:
        `ValueError`: if `config.text_config` is not of a causal language model of text with a linear head.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: AudioListenConfig) -> None:
        super().__init__(config)
        self.lm_head = build_language_head(config.text_config)
        self.model = AudioListenModel(config)
        embeddings = self.model.get_input_embeddings()
        for name, module in self.model.named_modules():
            if module is embeddings:
                self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.frozen_references = {}
        self.post_init()
        self.freeze()

    def get_audio_features(self, *args: Any, **kwargs: Any) -> tuple | BaseModelOutputWithPooling:
        """See [`AudioListenModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def get_encoder_features(self, *args: Any, **kwargs: Any) -> AudioFeatures:
        """See [`AudioListenModel.get_encoder_features`]."""
        return self.model.get_encoder_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        sound_input_values: torch.Tensor | None = None,
        sound_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        sound_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | AudioListenCausalLMOutputWithPast:
        """
        Clips are cut into chunks of at most 30 s. The chunks of all clips of the batch lie one after another on the
        first axis of the audio arguments, in the order in which their tokens stand in `input_ids`.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids, with one audio token for each embedding that the audio gives.
            input_features (`torch.Tensor` of shape `(chunks, mel_bins, 3000)`, *optional*):
                Log-mel spectrogram of each chunk for the speech encoder.
            input_features_mask (`torch.LongTensor` of shape `(chunks, 3000)`, *optional*):
                1 for the mel frames in which the clip still sounds.
            sound_input_values (`torch.Tensor` of shape `(chunks, sound_frames, 128)`, *optional*):
                Filter bank of each chunk for the sound encoder.
            sound_attention_mask (`torch.LongTensor` of shape `(chunks, sound_frames)`, *optional*):
                1 for the frames of `sound_input_values` that are no padding.
            speech_features, sound_features, audio_features_mask (`torch.Tensor`, *optional*):
                What the encoders made of the chunks ([`AudioFeatures`]), in place of the four arguments above.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for tokens that are attended to, 0 for padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions of the tokens.
            past_key_values (`Cache`, *optional*):
                Keys and values of earlier positions.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embeddings in place of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids to predict, -100 where there is nothing to learn.
            mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
                Under `"audio"` the output of `get_audio_features`, in place of the audio arguments.
            use_cache (`bool`, *optional*):
                Whether to return `past_key_values`.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                The last positions, or the positions, to compute logits for. All if 0.

        Returns:
            [`AudioListenCausalLMOutputWithPast`]

        Raises:
            `ValueError`: if audio tokens and audio embeddings differ in number (the message names both), a feature has
                the wrong size, or arguments exclude one another.

        Example:

        ```python
        >>> from peft_listen import AudioListenForCausalLM, AudioListenProcessor

        >>> processor = AudioListenProcessor.from_pretrained("path/to/model")
        >>> model = AudioListenForCausalLM.from_pretrained("path/to/model")
        >>> conversation = [
        ...     {
        ...         "role": "user",
        ...         "content": [
        ...             {"type": "audio", "path": "speech.wav"},
        ...             {"type": "text", "text": "What is said?"},
        ...         ],
        ...     }
        ... ]
        >>> inputs = processor.apply_chat_template(
        ...     conversation, add_generation_prompt=True, tokenize=True, return_dict=True
        ... )
        >>> output_ids = model.generate(**inputs, max_new_tokens=32)
        >>> processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            sound_input_values=sound_input_values,
            sound_attention_mask=sound_attention_mask,
            speech_features=speech_features,
            sound_features=sound_features,
            audio_features_mask=audio_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = scale_logits(self.lm_head(hidden_states), self.config.text_config)
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return AudioListenCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
        )


def _check_size(name: str, features: torch.Tensor, size: int) -> None:
    if features.ndim != 3 or features.shape[-1] != size:
        raise ValueError(
            f"`{name}` has the shape {tuple(features.shape)}, but (chunks, frames, {size}) was expected. Were these "
            "features made by the encoders of another model?"
        )


__all__ = ["AudioFeatures", "AudioListenForCausalLM", "AudioListenModel", "AudioListenPreTrainedModel"]
