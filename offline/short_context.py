"""A Whisper whose encoder hears a few seconds at a time instead of thirty, for short clips on a CPU.

    python -m offline.short_context WHISPER_DIR OUTPUT_DIR [--seconds 5]

Whisper pads every clip to 30 s, and encodes the silence too. The encoder's position embeddings are a plain sinusoid, so
the first few hundred of its 1500 positions work alone; whisper.cpp has the same as `--audio-ctx`. Clips of 1 to 5 s are
encoded about ten times as fast. Longer ones are cut into pieces of the new length, as others are into pieces of 30 s.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration


def shorten_context(whisper_dir: str | os.PathLike, output_dir: str | os.PathLike, seconds: int = 5) -> None:
    """Write a Whisper with a shorter context. A folder that is complete already is left as it is.

    Args:
        whisper_dir: Folder or Hub id of a Whisper model.
        output_dir: Folder to write.
        seconds: Length of what the encoder hears at once, from 1 to 30.

    Raises:
        ValueError: For a length that the encoder does not have.
    """
    output_dir = Path(output_dir)
    if output_dir.exists():
        print(f"reusing {output_dir}")
        return
    feature_extractor = WhisperFeatureExtractor.from_pretrained(whisper_dir)
    if not 1 <= seconds <= feature_extractor.chunk_length:
        raise ValueError(
            f"`seconds` must be from 1 to the {feature_extractor.chunk_length} s that {whisper_dir} hears, got {seconds}."
        )
    model = WhisperForConditionalGeneration.from_pretrained(whisper_dir)
    encoder = model.model.encoder
    positions = encoder.max_source_positions * seconds // feature_extractor.chunk_length
    kept = encoder.embed_positions.weight[:positions].clone()
    encoder.embed_positions = torch.nn.Embedding(*kept.shape, _weight=kept)
    model.config.max_source_positions = encoder.max_source_positions = positions
    temporary = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    for path in Path(whisper_dir).glob("*token*"):
        shutil.copy(path, temporary)
    sizes = {
        name: getattr(feature_extractor, name) for name in ("feature_size", "sampling_rate", "hop_length", "n_fft")
    }
    WhisperFeatureExtractor(**sizes, chunk_length=seconds).save_pretrained(temporary)
    temporary.rename(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("whisper_dir", help="folder or Hub id of a Whisper model")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seconds", type=int, default=5, help="what the encoder hears at once (default: 5)")
    shorten_context(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
