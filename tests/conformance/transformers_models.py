"""Small models and their inputs, in the form that transformers' mixins ask for."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast, WhisperConfig

from peft_listen import AudioListenConfig, BeatsConfig
from peft_listen.models.audio_listen import add_audio_token


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without a chat template, which knows the audio token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["lower newer older longer string"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    add_audio_token(tokenizer)
    return tokenizer


class BeatsModelTester:
    """What the mixins read of BEATs."""

    batch_size = 7
    num_frames = 48
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 2
    num_labels = 5
    is_training = True

    @property
    def seq_length(self) -> int:
        return self.get_config().get_num_tokens(self.num_frames)

    @property
    def encoder_seq_length(self) -> int:
        return self.seq_length

    def get_config(self) -> BeatsConfig:
        return BeatsConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=24,
            patch_embedding_size=8,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=40,
            layerdrop=0.0,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[BeatsConfig, dict[str, torch.Tensor]]:
        values = torch.randn(self.batch_size, self.num_frames, 128)
        mask = torch.ones(self.batch_size, self.num_frames, dtype=torch.long)
        return self.get_config(), {"input_values": values, "attention_mask": mask}


class AudioListenModelTester:
    """What the mixins read of AudioListen. Each row holds one clip of two audio tokens."""

    # `test_eager_matches_sdpa_inference` fills up smaller batches with random numbers, which are no masks.
    batch_size = 7
    seq_length = 9
    vocab_size = 99
    # Low, since tests of embeddings make the vocabulary smaller.
    audio_token_id = 3
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 2
    mel_bins = 8
    # Chunks of 1 s instead of 30 s: 50 frames of 20 ms, in which there is room for two windows.
    max_source_positions = 50
    num_sound_frames = 64
    is_training = True

    def __init__(self, has_sound: bool) -> None:
        self.has_sound = has_sound

    @property
    def text_config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=24,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )

    def get_config(self) -> AudioListenConfig:
        speech_config = WhisperConfig(
            vocab_size=16,
            num_mel_bins=self.mel_bins,
            d_model=12,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=16,
            max_source_positions=self.max_source_positions,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
            begin_suppress_tokens=None,
        )
        qformer_config = {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        return AudioListenConfig(
            speech_config=speech_config,
            sound_config=BeatsModelTester().get_config() if self.has_sound else None,
            qformer_config=qformer_config,
            text_config=self.text_config,
            audio_token_id=self.audio_token_id,
            freeze_language_model=False,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[AudioListenConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(self.audio_token_id + 1, self.vocab_size, (self.batch_size, self.seq_length))
        input_ids[:, 2:4] = self.audio_token_id
        chunk = (self.batch_size, 2 * self.max_source_positions)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "input_features": torch.randn(chunk[0], self.mel_bins, chunk[1]),
            "input_features_mask": torch.ones(chunk, dtype=torch.long),
        }
        if self.has_sound:
            inputs["sound_input_values"] = torch.randn(self.batch_size, self.num_sound_frames, 128)
            inputs["sound_attention_mask"] = torch.ones(self.batch_size, self.num_sound_frames, dtype=torch.long)
        return self.get_config(), inputs
