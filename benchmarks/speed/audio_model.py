"""Time of the audio model as ratios to transformers' Granite Speech of the same sizes.

    python -m benchmarks.speed.audio_model [--device cuda --dtype bfloat16] [--sound] [--seconds 30]

Both have the same language model, Q-Former, windows and number of audio tokens. The number of layers of Granite Speech's
encoder is set so that its parameters are closest to those of Whisper's encoder (with `--sound`, of Whisper's and BEATs'
encoders). The weights are random, because only their sizes matter here. `forward` and `generate` are timed in
evaluation mode and start from features. The table has the median of the ratios and their quartiles.

One difference by design is included: Whisper encodes the least multiple of `--speech-chunk-multiple` seconds that holds the
clip, by default 30 s. With a smaller multiple, the table also compares its `forward` with that at 30 s.
"""

import argparse

import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    GraniteSpeechConfig,
    GraniteSpeechEncoderConfig,
    GraniteSpeechForConditionalGeneration,
    LlamaConfig,
    WhisperConfig,
)

from peft_listen import AudioListenConfig, AudioListenForCausalLM, BeatsConfig

from .command import add_options, describe, parse, report, turn_options
from .ratios import Call, Ratio, ratio_in_turns, ratio_table


WINDOW = 17  # frames of 20 ms
MEL_BINS = 80
SOUND_BINS = 128
AUDIO_TOKEN_ID = 3
BATCH_SIZES = (1, 4)
CHUNK_SECONDS = 30  # Whisper's own form


def parameters(*modules: nn.Module | None) -> int:
    return sum(weight.numel() for module in modules if module is not None for weight in module.parameters())


class Benchmark:
    """
    Builds both models and compares calls on them.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device, self.dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
        self.num_frames = round(arguments.seconds * 50)
        self.num_audio_tokens = -(-self.num_frames // WINDOW)
        self.text_config = LlamaConfig(
            vocab_size=arguments.vocab_size,
            hidden_size=arguments.hidden_size,
            intermediate_size=arguments.hidden_size * 11 // 4,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.hidden_size // 64,
            num_key_value_heads=max(1, arguments.hidden_size // 256),
            tie_word_embeddings=False,
        )
        self.listen = self.build(AudioListenForCausalLM, self.listen_config())
        self.granite = self.build(GraniteSpeechForConditionalGeneration, self.granite_config())

    def build(self, model_class: type, config: object) -> nn.Module:
        torch.manual_seed(0)
        with torch.device(self.device):
            return model_class(config).to(self.dtype).eval()

    def qformer(self, encoder_size: int) -> dict[str, int]:
        width = self.arguments.qformer_size
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
        return {**sizes, "num_hidden_layers": 2, "cross_attention_frequency": 1, "encoder_hidden_size": encoder_size}

    def listen_config(self) -> AudioListenConfig:
        width = self.arguments.encoder_size
        sizes = {"num_attention_heads": width // 64, "intermediate_size": 4 * width, "hidden_size": width}
        return AudioListenConfig(
            speech_config=WhisperConfig(
                d_model=width,
                encoder_layers=self.arguments.encoder_layers,
                encoder_attention_heads=width // 64,
                encoder_ffn_dim=4 * width,
                num_mel_bins=MEL_BINS,
            ),
            sound_config=BeatsConfig(**sizes, num_hidden_layers=self.arguments.encoder_layers)
            if self.arguments.sound
            else None,
            qformer_config=self.qformer(0),
            text_config=self.text_config,
            audio_token_id=AUDIO_TOKEN_ID,
            window_length=WINDOW,
            window_stride=WINDOW,
            speech_chunk_multiple=self.arguments.speech_chunk_multiple,
        )

    def granite_config(self) -> GraniteSpeechConfig:
        width = self.arguments.encoder_size
        wanted = parameters(self.listen.model.speech_tower, self.listen.model.sound_tower)

        def config(num_layers: int) -> GraniteSpeechConfig:
            return GraniteSpeechConfig(
                encoder_config=GraniteSpeechEncoderConfig(
                    input_dim=2 * MEL_BINS, num_layers=num_layers, hidden_dim=width, num_heads=width // 64
                ),
                projector_config=Blip2QFormerConfig(**self.qformer(width)),
                text_config=self.text_config,
                audio_token_index=AUDIO_TOKEN_ID,
                window_size=WINDOW,
                downsample_rate=WINDOW,
                has_lora_adapter=False,
                tie_word_embeddings=False,
            )

        with torch.device("meta"):
            one, two = (
                parameters(GraniteSpeechForConditionalGeneration(config(number)).model.encoder) for number in (1, 2)
            )
        return config(max(1, 1 + round((wanted - one) / (two - one))))

    def inputs(self, batch_size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Inputs of both models: the same text and features of clips of the same length."""
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(4, self.text_config.vocab_size, (batch_size, self.arguments.length), generator=generator)
        audio = torch.full((batch_size, self.num_audio_tokens), AUDIO_TOKEN_ID)
        input_ids = torch.cat([audio, text], dim=1).to(self.device)
        common = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(batch_size, *shape, generator=generator).to(self.device, self.dtype)

        mask = (torch.arange(3000) < 2 * self.num_frames).long().expand(batch_size, -1).to(self.device)
        listen = {**common, "input_features": noise(MEL_BINS, 3000), "input_features_mask": mask}
        if self.arguments.sound:
            listen["sound_input_values"] = noise(2 * self.num_frames - 2, SOUND_BINS)
        return listen, {**common, "input_features": noise(self.num_frames, 2 * MEL_BINS)}

    def compare(self, name: str, call: Call, peer: Call) -> Ratio:
        print(f"measuring {name} ...", flush=True)
        return ratio_in_turns(name, call, peer, **turn_options(self.arguments))

    @torch.no_grad()
    def run(self) -> list[Ratio]:
        """The rows of the table."""
        results = []
        new_tokens = {"max_new_tokens": self.arguments.new_tokens, "min_new_tokens": self.arguments.new_tokens}
        multiple = self.arguments.speech_chunk_multiple
        for batch_size in BATCH_SIZES:
            listen_inputs, granite_inputs = self.inputs(batch_size)
            results.append(
                self.compare(
                    f"forward, batch {batch_size}",
                    lambda inputs=listen_inputs: self.listen(**inputs, logits_to_keep=1),
                    lambda inputs=granite_inputs: self.granite(**inputs, logits_to_keep=1),
                )
            )
            results.append(
                self.compare(
                    f"generate {self.arguments.new_tokens} tokens, batch {batch_size}",
                    lambda inputs=listen_inputs: self.listen.generate(**inputs, **new_tokens, do_sample=False),
                    lambda inputs=granite_inputs: self.granite.generate(**inputs, **new_tokens, do_sample=False),
                )
            )
            if multiple < CHUNK_SECONDS:
                results.append(
                    self.compare(
                        f"AudioListen's forward at multiples of {multiple} s / at {CHUNK_SECONDS} s, batch {batch_size}",
                        lambda inputs=listen_inputs: self.forward_at(multiple, inputs),
                        lambda inputs=listen_inputs: self.forward_at(CHUNK_SECONDS, inputs),
                    )
                )
                self.listen.config.speech_chunk_multiple = multiple
        return results

    def forward_at(self, multiple: int, inputs: dict[str, torch.Tensor]) -> None:
        self.listen.config.speech_chunk_multiple = multiple
        self.listen(**inputs, logits_to_keep=1)

    def describe(self) -> str:
        listen, granite, millions = self.listen.model, self.granite.model, 1e6
        rows = [
            ("audio encoder", parameters(listen.speech_tower, listen.sound_tower), parameters(granite.encoder)),
            ("projector", parameters(listen.multi_modal_projector), parameters(granite.projector)),
            (
                "language model",
                parameters(listen.language_model, self.listen.lm_head),
                parameters(granite.language_model, self.granite.lm_head),
            ),
        ]
        lines = [f"| {name} | {ours / millions:.1f} M | {theirs / millions:.1f} M |" for name, ours, theirs in rows]
        return "\n".join(["| parameters | AudioListen | Granite Speech |", "|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, "audio_model")
    parser.add_argument("--sound", action="store_true", help="add a BEATs encoder")
    parser.add_argument("--seconds", type=float, default=29.92, help="length of each clip, at most 30")
    parser.add_argument("--speech-chunk-multiple", type=int, default=30, help="seconds (default: 30)")
    parser.add_argument("--encoder-size", type=int, default=512)
    parser.add_argument("--encoder-layers", type=int, default=6)
    parser.add_argument("--qformer-size", type=int, default=768)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--length", type=int, default=32, help="text tokens in addition to the audio")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--warm-up", type=int, default=2)
    arguments = parse(parser)
    if arguments.seconds > 30:
        parser.error(f"--seconds must be at most 30, got {arguments.seconds:g}")
    benchmark = Benchmark(arguments)
    setting = (
        f"Clips of {arguments.seconds:g} s, {benchmark.num_audio_tokens} audio tokens and {arguments.length} of text; chunks "
        f"encoded as multiples of {arguments.speech_chunk_multiple} s; {arguments.repeats} alternating repeats."
    )
    ratios = benchmark.run()
    report(arguments, describe(arguments), setting, benchmark.describe(), ratio_table(ratios))


if __name__ == "__main__":
    main()
