"""Trains the small BEATs encoder of the benchmark and writes it as an original checkpoint.

    python -m benchmarks.mini_listen.beats DATA_DIR CHECKPOINT.pt

It classifies the sounds and their loudness, the voice and the emotion of training clips, with several labels per clip.
It replaces the released BEATs checkpoints, which were trained on AudioSet and cannot be downloaded without a network.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from peft_listen.audio import load_audio
from peft_listen.files import atomic_path
from peft_listen.models.beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from peft_listen.models.beats.convert_beats_original_checkpoint import to_original_checkpoint

from .data import CAPTIONS, EMOTIONS, GENDERS, LOUDNESS, VOICES


# Names of the labels by kind.
LABELS = {
    "sound": [words.format(loudness) for words in CAPTIONS.values() for loudness in LOUDNESS],
    "emotion": list(EMOTIONS),
    "voice": [voice for gender in GENDERS for voice in VOICES["train"][gender]],
}
ALL_LABELS = [label for labels in LABELS.values() for label in labels]
# The task on which each kind of label is tested.
TESTED_ON = {"sound": "acap", "emotion": "er", "voice": "er"}
# Validation has no voices of the training split, so every tenth training clip is held out for testing the voices.
KEPT_EVERY = 10


@dataclass(frozen=True)
class BeatsTraining:
    """
    Settings of the training.

    Args:
        epochs (`int`, defaults to 5): passes over the training clips.
        batch_size (`int`, defaults to 8): clips per step.
        learning_rate (`float`, defaults to 2e-3): highest learning rate, after a warm-up over 10 % of the steps and before a
            cosine decay to 0.
        weight_decay (`float`, defaults to 0.01): weight decay of AdamW.
        tasks (`tuple[str, ...]`, defaults to `("er", "acap")`): tasks whose clips are used.
        seed (`int`, defaults to 0): seed of the initial weights and the order of the clips.
        model (`dict`): fields of [`BeatsConfig`] that differ from those of the released checkpoints.
    """

    epochs: int = 5
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    tasks: tuple[str, ...] = ("er", "acap")
    seed: int = 0
    model: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 144,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 384,
            "patch_embedding_size": 128,
            "num_conv_pos_embeddings": 32,
            "relative_attention_num_buckets": 64,
            "relative_attention_max_distance": 160,
            "layerdrop": 0.0,
            "deep_norm": False,
            "layer_norm_first": True,
            "initializer_range": 0.08,
        }
    )


@dataclass(frozen=True)
class LabeledClip:
    """Filter bank of a clip, float32 of shape `(num_frames, num_mel_bins)`, its labels and its task."""

    features: torch.Tensor
    labels: torch.Tensor
    task: str


def train_beats(
    data_dir: str | Path,
    checkpoint_path: str | Path,
    settings: BeatsTraining | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """
    Trains the encoder and writes it in the original format, `{"cfg", "model", "label_dict"}`, or reuses it.

    A `.json` file of the same name holds the settings, the accuracies and the hash of the data. A checkpoint whose `.json`
    file has the same settings and hash is not changed.

    Args:
        data_dir (`str` or `Path`): folder that [`make_data`] wrote.
        checkpoint_path (`str` or `Path`): file to write, e.g. for
            `AudioListenForCausalLM.from_sub_models_pretrained(sound=...)`.
        settings ([`BeatsTraining`], *optional*): settings of the training. The same settings, library versions, device and
            number of threads give the same weights.
        device (`str`, defaults to `"cpu"`): where to train.

    Returns:
        `dict[str, float]`: accuracy for `"sound"` (all sounds of a clip, with their loudness) and `"emotion"` on validation
        clips, and for `"voice"` on held-out training clips; only for kinds of labels that the tasks of the settings have.

    Raises:
        OSError: if the data cannot be read or the checkpoint cannot be written.
        ValueError: if there are no clips to train on.
    """
    settings = settings or BeatsTraining()
    data_dir, checkpoint_path = Path(data_dir), Path(checkpoint_path)
    manifest = json.loads((data_dir / "manifest.json").read_text(encoding="utf-8"))
    request = json.loads(json.dumps({"data_sha256": manifest["sha256"], "settings": asdict(settings)}))
    record_path = checkpoint_path.with_suffix(".json")
    if checkpoint_path.is_file() and record_path.is_file():
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if {name: record.get(name) for name in request} == request:
            print(f"reusing {checkpoint_path}")
            return record["accuracy"]

    start = time.perf_counter()
    clips = _read_clips(data_dir, "train", settings.tasks)
    kept = [clip for clip in clips if clip.task == TESTED_ON["voice"]][::KEPT_EVERY]
    kept_ids = {id(clip) for clip in kept}
    clips = [clip for clip in clips if id(clip) not in kept_ids]
    if not clips:
        raise ValueError(
            f"{data_dir} has no training clips of {', '.join(settings.tasks)}. Change `BeatsTraining.tasks`."
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = _fit(clips, settings, device)
    tests = {kind: _read_clips(data_dir, "validation", (TESTED_ON[kind],)) for kind in ("sound", "emotion")}
    tests["voice"] = kept
    accuracy = {
        kind: _accuracy(model, test, kind, settings.batch_size)
        for kind, test in tests.items()
        if TESTED_ON[kind] in settings.tasks
    }

    checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
    record_path.unlink(missing_ok=True)  # an old record must not describe the new checkpoint
    to_original_checkpoint(model.cpu(), checkpoint_path)
    seconds = round(time.perf_counter() - start)
    record = {**request, "accuracy": accuracy, "parameters": model.num_parameters(), "seconds": seconds}
    with atomic_path(record_path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return accuracy


def _read_clips(data_dir: Path, split: str, tasks: Sequence[str]) -> list[LabeledClip]:
    extractor = BeatsFeatureExtractor()
    clips = []
    rows = [json.loads(line) for line in (data_dir / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["task"] in tasks]
    for row in tqdm(rows, desc=f"filter banks of the {split} clips", unit="clip"):
        features = extractor(load_audio(str(data_dir / row["audio"])), sampling_rate=16_000, return_tensors="pt")
        names = {*row["sounds"], *row["voices"], row.get("emotion")}
        labels = torch.tensor([float(label in names) for label in ALL_LABELS])
        clips.append(LabeledClip(features["input_values"][0], labels, row["task"]))
    return clips


def _fit(clips: list[LabeledClip], settings: BeatsTraining, device: str) -> BeatsForAudioClassification:
    config = BeatsConfig(
        **settings.model,
        id2label=dict(enumerate(ALL_LABELS)),
        label2id={label: index for index, label in enumerate(ALL_LABELS)},
        problem_type="multi_label_classification",
    )
    model = BeatsForAudioClassification(config).train()
    # Most labels are absent from most clips. Initial biases from their frequencies save about half of the training.
    share = torch.stack([clip.labels for clip in clips]).mean(0).clamp(0.001, 0.999)
    model.classifier.bias.data.copy_(share.logit())
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    steps = settings.epochs * -(-len(clips) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(settings.seed)
    with tqdm(total=steps, desc="training BEATs", unit="step") as progress:
        for _ in range(settings.epochs):
            for batch in _batches(clips, settings.batch_size, rng):
                inputs, mask = _pad(batch, device)
                labels = torch.stack([clip.labels for clip in batch]).to(device)
                loss = model(inputs, attention_mask=mask, labels=labels).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                progress.set_postfix(loss=f"{loss.item():.3f}")
                progress.update()
    return model.eval()


def _batches(
    clips: list[LabeledClip], batch_size: int, rng: np.random.Generator | None = None
) -> Iterator[list[LabeledClip]]:
    """Batches of clips of similar length; with a generator, in random order and with random differences in length."""
    jitter = rng.uniform(0.9, 1.1, len(clips)) if rng is not None else np.ones(len(clips))
    order = np.argsort([len(clip.features) * factor for clip, factor in zip(clips, jitter, strict=True)])
    starts = np.arange(0, len(clips), batch_size)
    for start in rng.permutation(starts) if rng is not None else starts:
        yield [clips[index] for index in order[start : start + batch_size]]


def _pad(batch: list[LabeledClip], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(clip.features) for clip in batch])
    silence = BeatsFeatureExtractor().padding_value
    inputs = torch.nn.utils.rnn.pad_sequence(
        [clip.features for clip in batch], batch_first=True, padding_value=silence
    )
    return inputs.to(device), (torch.arange(inputs.shape[1]) < lengths[:, None]).long().to(device)


@torch.no_grad()
def _accuracy(model: BeatsForAudioClassification, clips: list[LabeledClip], kind: str, batch_size: int) -> float:
    """Share of clips whose labels of this kind all score above the other labels of the kind."""
    columns = [ALL_LABELS.index(label) for label in LABELS[kind]]
    right = []
    for batch in _batches(clips, batch_size):
        inputs, mask = _pad(batch, model.device)
        logits = model(inputs, attention_mask=mask).logits[:, columns].cpu()
        wanted = torch.stack([clip.labels for clip in batch])[:, columns].bool()
        for scores, labels in zip(logits, wanted, strict=True):
            right.append(bool(scores[labels].min() > scores[~labels].max()))
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path, help="folder of the benchmark's data")
    parser.add_argument("checkpoint", type=Path, help="file to write, .pt")
    parser.add_argument("--epochs", type=int, default=BeatsTraining.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    settings = BeatsTraining(epochs=arguments.epochs, seed=arguments.seed)
    for kind, value in train_beats(arguments.data_dir, arguments.checkpoint, settings, arguments.device).items():
        print(f"{kind}: {value:.3f}")


if __name__ == "__main__":
    main()
