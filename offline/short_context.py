"""Shortens the context of a Whisper encoder from 30 s to a few seconds, for short clips on a CPU.

    python -m offline.short_context WHISPER_DIR OUTPUT_DIR [--seconds 5]

Whisper pads every clip to 30 s and encodes the padding too. The encoder's position embeddings are sinusoidal, so it also
works with the first few hundred of its 1500 positions; whisper.cpp has the same option as `--audio-ctx`. Clips of 1 to 5 s
are encoded about ten times as fast. Longer clips are split into chunks of the new length instead of 30 s.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from peft_listen.files import atomic_path


def shorten_context(whisper_dir: str | os.PathLike, output_dir: str | os.PathLike, seconds: int = 5) -> None:
    """
    Writes a Whisper model with a shorter context. A folder that exists is not changed.

    Args:
        whisper_dir (`str` or `os.PathLike`): folder or Hub id of a Whisper model.
        output_dir (`str` or `os.PathLike`): folder to write.
        seconds (`int`, defaults to 5): length of the encoder's context, from 1 to that of the original.

    Raises:
        ValueError: if the length is outside this range.
    """
    output_dir = Path(output_dir)
    if output_dir.exists():
        print(f"reusing {output_dir}")
        return
    feature_extractor = WhisperFeatureExtractor.from_pretrained(whisper_dir)
    if not 1 <= seconds <= feature_extractor.chunk_length:
        raise ValueError(
            f"`seconds` must be from 1 to {feature_extractor.chunk_length}, the context of {whisper_dir}, got {seconds}."
        )
    model = WhisperForConditionalGeneration.from_pretrained(whisper_dir)
    encoder = model.model.encoder
    positions = encoder.max_source_positions * seconds // feature_extractor.chunk_length
    kept = encoder.embed_positions.weight[:positions].clone()
    encoder.embed_positions = torch.nn.Embedding(*kept.shape, _weight=kept)
    model.config.max_source_positions = encoder.max_source_positions = positions
    sizes = {
        name: getattr(feature_extractor, name) for name in ("feature_size", "sampling_rate", "hop_length", "n_fft")
    }
    with atomic_path(output_dir) as temporary:
        model.save_pretrained(temporary)
        for path in Path(whisper_dir).glob("*token*"):
            shutil.copy(path, temporary)
        WhisperFeatureExtractor(**sizes, chunk_length=seconds).save_pretrained(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("whisper_dir", help="folder or Hub id of a Whisper model")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seconds", type=int, default=5, help="context of the encoder (default: 5)")
    shorten_context(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
