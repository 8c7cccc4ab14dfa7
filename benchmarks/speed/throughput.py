"""Audio tokens per second and real-time factor of the audio model, for several batch sizes and lengths of clips.

    python -m benchmarks.speed.throughput [--size 135m] [--batch-sizes 1 4 16] [--seconds 10 60] [--threads 1 --clock cpu]
    python -m benchmarks.speed.throughput --size 8b --device cuda --dtype bfloat16

Three calls are measured: the processor, from samples to features; `encode`, from features to audio tokens (encoders and
projector); and `generate`, from features to new tokens, with encoding, prefill and a LISTEN adapter. The batch sizes
alternate. The real-time factor is the time divided by the length of the audio in the batch: below 1 is faster than the
audio plays. The weights are random, because only their sizes matter here.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from peft import get_peft_model

from peft_listen import ListenConfig

from .command import add_options, describe, parse, report, turn_options
from .ratios import Call, quartiles, time_in_turns
from .sizes import DESCRIPTIONS, make_audio_model, make_processor


SAMPLING_RATE = 16_000


class Benchmark:
    """
    Builds the model, and measures its calls.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        multiple = arguments.speech_chunk_multiple
        self.processor = make_processor(arguments.size, speech_chunk_multiple=multiple)
        self.model = make_audio_model(arguments.size, self.processor, arguments.device, arguments.dtype)
        settings = {"pool_size": arguments.pool_size, "prompt_length": arguments.prompt_length}
        self.adapted = get_peft_model(self.model, ListenConfig(**settings, task_type="CAUSAL_LM")).eval()
        self.text = f"{self.processor.audio_token} " + " ".join(["what"] * arguments.length)

    def waveforms(self, seconds: float, batch_size: int) -> list[np.ndarray]:
        noise = np.random.default_rng(0).normal(0, 0.1, (batch_size, round(seconds * SAMPLING_RATE)))
        return list(noise.astype(np.float32))

    def process(self, waveforms: list[np.ndarray]) -> Any:
        return self.processor(text=[self.text] * len(waveforms), audio=waveforms, sampling_rate=SAMPLING_RATE)

    def calls(self, seconds: float, batch_size: int) -> tuple[dict[str, Call], int]:
        """The measured calls by name, and the number of audio tokens of a clip."""
        waveforms = self.waveforms(seconds, batch_size)
        inputs = dict(self.process(waveforms).to(self.arguments.device))
        audio = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        new_tokens = self.arguments.new_tokens
        calls: dict[str, Call] = {
            "processor": lambda: self.process(waveforms),
            "encode": lambda: self.model.get_audio_features(**audio),
            "generate": lambda: self.adapted.generate(**inputs, max_new_tokens=new_tokens, do_sample=False),
        }
        return calls, int((inputs["input_ids"][0] == self.processor.audio_token_id).sum())

    @torch.no_grad()
    def run(self) -> str:
        """The table."""
        sizes = sorted(self.arguments.batch_sizes)
        columns = ["call", "clip", "batch", "audio tokens/s", "real-time factor", f"time per clip / batch {sizes[0]}"]
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for seconds in self.arguments.seconds:
            of_sizes = {batch_size: self.calls(seconds, batch_size) for batch_size in sizes}
            for name in of_sizes[sizes[0]][0]:
                print(f"measuring {name}, {seconds:g} s ...", flush=True)
                turns = time_in_turns(*(calls[name] for calls, _ in of_sizes.values()), **turn_options(self.arguments))
                times = dict(zip(sizes, zip(*turns, strict=True), strict=True))
                for batch_size, (_, tokens) in of_sizes.items():
                    lines.append(row(name, seconds, batch_size, tokens, times))
        return "\n".join(lines)


def row(name: str, seconds: float, batch_size: int, tokens: int, times: dict[int, tuple[float, ...]]) -> str:
    """
    A line of the table: median and quartiles.

    Args:
        name (`str`): the call.
        seconds (`float`): length of a clip.
        batch_size (`int`): clips in a call.
        tokens (`int`): audio tokens of a clip.
        times (`dict[int, tuple[float, ...]]`): seconds of the call in each turn, by batch size.
    """
    speed = spread([batch_size * tokens / time for time in times[batch_size]], 1)
    factor = statistics.median(times[batch_size]) / (batch_size * seconds)
    smallest = min(times)
    cells = [name, f"{seconds:g} s", f"{batch_size}", speed, f"{factor:.3g}"]
    if batch_size == smallest:
        cells.append("")
    else:
        pairs = zip(times[batch_size], times[smallest], strict=True)
        cells.append(spread([(time / batch_size) / (one / smallest) for time, one in pairs], 3))
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], digits: int) -> str:
    first, median, third = (f"{value:.{digits}f}" for value in quartiles(values))
    return f"{median} ({first} to {third})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, "throughput")
    parser.add_argument("--size", choices=DESCRIPTIONS, default="135m")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60], help="lengths of the clips")
    parser.add_argument("--speech-chunk-multiple", type=int, default=30, help="seconds (default: 30)")
    parser.add_argument("--length", type=int, default=16, help="text tokens in addition to the audio")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--pool-size", type=int, default=400)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    arguments = parse(parser)
    machine = describe(arguments)
    setting = (
        f"Random weights: {DESCRIPTIONS[arguments.size]}. Chunks are encoded as multiples of "
        f"{arguments.speech_chunk_multiple} s. {arguments.new_tokens} new tokens, {arguments.length} tokens of text, k = "
        f"{arguments.prompt_length} of P = {arguments.pool_size}. {arguments.repeats} alternating repeats: median (quartiles)."
    )
    report(arguments, machine, setting, Benchmark(arguments).run())


if __name__ == "__main__":
    main()
