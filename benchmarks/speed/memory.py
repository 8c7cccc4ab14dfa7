"""Peak memory of the processor and of the encoders for clips of 10 seconds to 30 minutes.

    python -m benchmarks.speed.memory [--size 135m] [--seconds 10 60 240 600 1800] [--encoder-batch-sizes 1 8] [--threads 1]
    python -m benchmarks.speed.memory --size 8b --device cuda --dtype bfloat16

Every clip is measured in a new process, after a short clip. The numbers are above the memory in use before the call, which
holds the model and the inputs of the call. That of the processor is resident memory, that of the encoders (with the
projector) is resident memory on a CPU and allocated memory on CUDA. The weights are random, because only their sizes matter
here.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.memory import peak_memory, reset_peak_memory, used_memory

from .command import add_options, describe, parse, report
from .ratios import Call
from .sizes import DESCRIPTIONS, make_audio_model, make_processor


SAMPLING_RATE = 16_000


class Measurement(NamedTuple):
    """
    Memory in MiB of one clip.

    Attributes:
        chunks (`int`): of at most 30 s.
        features (`float`): outputs of the processor.
        processor (`float`): peak of the processor above the samples that it is given.
        embeddings (`float`): outputs of the projector.
        encoders (`float`): peak of encoders and projector above the model and the features.
    """

    chunks: int
    features: float
    processor: float
    embeddings: float
    encoders: float


@torch.no_grad()
def measure(size: str, device: str, dtype: str, seconds: float, encoder_batch_size: int) -> Measurement:
    """
    Measures one clip in this process.

    Args:
        size (`str`): of `sizes.py`.
        device, dtype (`str`): of the model.
        seconds (`float`): length of the clip.
        encoder_batch_size (`int`): field of [`~peft_listen.AudioListenConfig`].
    """
    processor = make_processor(size)
    model = make_audio_model(size, processor, device, dtype, encoder_batch_size=encoder_batch_size)
    # The language model does not run.
    model.model.language_model.to("meta")
    model.lm_head.to("meta")
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLING_RATE)).astype(np.float32)
    found: dict[str, Any] = {}

    def process(waveform: np.ndarray) -> None:
        found["inputs"] = processor(audio=[waveform], sampling_rate=SAMPLING_RATE)

    def encode() -> None:
        found["embeddings"] = model.get_audio_features(**inputs).pooler_output

    process(samples[:SAMPLING_RATE])
    inputs = found["inputs"].to(device)
    encode()  # libraries allocate memory of their own in the first call
    in_processor = peak_of(lambda: process(samples), "cpu")
    inputs = dict(found["inputs"].to(device))
    in_encoders = peak_of(encode, device)
    return Measurement(
        chunks=len(inputs["input_features"]),
        features=sum(map(mebibytes, inputs.values())),
        processor=in_processor,
        embeddings=mebibytes(found["embeddings"]),
        encoders=in_encoders,
    )


def mebibytes(tensor: torch.Tensor) -> float:
    return tensor.numel() * tensor.element_size() / 2**20


def peak_of(call: Call, device: str) -> float:
    """Peak memory of a call above the memory in use before it, in MiB."""
    gc.collect()
    reset_peak_memory(device)
    before = used_memory(device)
    call()
    return peak_memory(device) - before


def measure_in_new_process(arguments: argparse.Namespace, seconds: float, encoder_batch_size: int) -> Measurement:
    options = ["--size", arguments.size, "--device", arguments.device, "--dtype", arguments.dtype]
    options += ["--threads", str(torch.get_num_threads()), "--only", f"{seconds}", f"{encoder_batch_size}"]
    # By default, glibc keeps freed blocks below a limit that it raises while the program runs, so resident memory would
    # depend on the order of the allocations.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.speed.memory", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return Measurement(*json.loads(output.splitlines()[-1]))


def table(found: dict[tuple[float, int], Measurement]) -> str:
    """
    The measurements in MiB.

    Args:
        found (`dict[tuple[float, int], Measurement]`): by seconds and `encoder_batch_size`.
    """
    lengths, batch_sizes = (sorted(set(values)) for values in zip(*found, strict=True))
    columns = ["clip", "chunks", "features", "processor: peak", "embeddings"]
    columns += [f"encoders, batch {size}: peak" for size in batch_sizes]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for seconds in lengths:
        of_clip = [found[seconds, size] for size in batch_sizes]
        chunks, *memory = of_clip[0][:4]
        memory += [one.encoders for one in of_clip]
        cells = [f"{seconds:g} s", f"{chunks}", *(f"{value:.0f}" for value in memory)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(growth(found, lengths, size) for size in batch_sizes)])


def growth(found: dict[tuple[float, int], Measurement], lengths: Sequence[float], batch_size: int) -> str:
    """The growth of the encoders' peak from the shortest clip that fills a batch to the longest one."""
    full = [seconds for seconds in lengths if found[seconds, batch_size].chunks >= batch_size]
    if len(full) < 2:
        return f"- Encoders with `encoder_batch_size` = {batch_size}: no two clips fill a batch."
    first, last = found[full[0], batch_size], found[full[-1], batch_size]
    return (
        f"- Encoders with `encoder_batch_size` = {batch_size}: {last.encoders - first.encoders:.0f} MiB more for {full[-1]:g} s "
        f"than for {full[0]:g} s, of which {last.embeddings - first.embeddings:.0f} MiB are embeddings."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, "memory", with_clock=False)
    parser.add_argument("--size", choices=DESCRIPTIONS, default="135m")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[10, 60, 240, 600, 1800], help="lengths of the clips"
    )
    parser.add_argument("--encoder-batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parse(parser)
    if arguments.only:
        seconds, batch_size = float(arguments.only[0]), int(arguments.only[1])
        print(json.dumps(measure(arguments.size, arguments.device, arguments.dtype, seconds, batch_size)))
        return
    found = {}
    for seconds in arguments.seconds:
        for batch_size in arguments.encoder_batch_sizes:
            print(f"measuring {seconds:g} s, encoder_batch_size = {batch_size} ...", flush=True)
            found[seconds, batch_size] = measure_in_new_process(arguments, seconds, batch_size)
    setting = f"Random weights: {DESCRIPTIONS[arguments.size]}. Peak memory in MiB, one new process per clip."
    report(arguments, describe(arguments), setting, table(found))


if __name__ == "__main__":
    main()
