"""Time of an epoch with cached encoder features, as a ratio to an epoch that loads and encodes the audio.

    python -m benchmarks.speed.cache [--threads 1] [--clips 32] [--seconds 10] [--folder .speed] [--base BASE]

The base model consists of real models, Whisper tiny.en and SmolLM2-135M-Instruct, from Python wheels (`offline/`); `--base`
names another one. The clips are FLAC files of noise, of which only the length matters.

Two kinds of epochs are measured for each number of data loader workers:

- the audio part, which the cache affects: the data loader, the encoder or the cached features, and the projector, forward
  and backward, without the language model;
- training steps with the language model and a LISTEN pool, whose cost is the same with and without the cache.

The time includes the first batch: the start of the workers and, with the cache, opening it. A new `FeatureCache` object is
opened in every epoch, so it knows no more than a new process. Loading the model is not included.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from peft import get_peft_model
from torch.utils.data import DataLoader

from offline import build_base, small_models
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.training import AudioListenCollator, FeatureCache

from .command import add_options, describe, parse, report
from .ratios import Call, Ratio, ratio_in_turns, ratio_table


SAMPLING_RATE = 16_000
TEXT_INPUTS = ("input_ids", "attention_mask", "labels", "logits_to_keep", "shift_labels")


def make_base(folder: Path) -> Path:
    """Composes the base model from the two small models; existing folders are reused."""
    models = small_models.obtain(folder / "models")
    build_base.build_base(
        folder / "base", str(models["speech"]), str(models["llm"]), text_template=build_base.CHATML_TEMPLATE
    )
    return folder / "base"


def make_examples(folder: Path, clips: int, seconds: float) -> list[dict[str, Any]]:
    """Writes clips of noise and returns one example for each; existing files are reused, so their age is realistic."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for index in range(clips):
        path = folder / f"{index}_{seconds:g}s.flac"
        if not path.exists():
            noise = np.random.default_rng(index).normal(0, 0.1, round(seconds * SAMPLING_RATE))
            soundfile.write(path, noise.clip(-1, 1), SAMPLING_RATE)
        examples.append(
            {
                "audio": str(path),
                "instruction": "What do you hear?",
                "answer": "a dog barking in the rain",
                "task": "noise",
            }
        )
    return examples


class Benchmark:
    """
    Builds model and cache, and measures epochs.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        base = arguments.base or make_base(arguments.folder)
        self.examples = make_examples(arguments.folder / "clips", arguments.clips, arguments.seconds)
        self.processor = AudioListenProcessor.from_pretrained(base)
        self.model = AudioListenForCausalLM.from_pretrained(base, dtype=getattr(torch, arguments.dtype))
        self.model.to(arguments.device)
        cache = FeatureCache(arguments.folder / "features", self.model)
        cache.build(self.model, self.processor, [example["audio"] for example in self.examples], arguments.batch_size)
        config = ListenConfig(pool_size=64, prompt_length=8, modules_to_save=["multi_modal_projector"])
        self.adapted = get_peft_model(self.model, config).train()
        trained = [parameter for parameter in self.adapted.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def epoch(self, *, cached: bool, workers: int, language_model: bool) -> None:
        """One pass over all clips, from opening the cache to the last optimizer step."""
        cache = FeatureCache(self.arguments.folder / "features", self.model) if cached else None
        collator = AudioListenCollator(self.processor, feature_cache=cache)
        for batch in DataLoader(
            self.examples, batch_size=self.arguments.batch_size, num_workers=workers, collate_fn=collator
        ):
            batch = {
                name: value.to(self.arguments.device) if torch.is_tensor(value) else value
                for name, value in batch.items()
            }
            self.train_step(batch, language_model)

    def train_step(self, batch: Mapping[str, Any], language_model: bool) -> None:
        if language_model:
            loss = self.adapted(**batch).loss
        else:
            audio = {name: value for name, value in batch.items() if name not in TEXT_INPUTS}
            loss = self.model.get_audio_features(**audio).pooler_output.square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def calls(self, workers: int, language_model: bool) -> tuple[Call, Call]:
        """An epoch with and an epoch without the cache."""
        return (
            lambda: self.epoch(cached=True, workers=workers, language_model=language_model),
            lambda: self.epoch(cached=False, workers=workers, language_model=language_model),
        )

    def run(self, language_model: bool, repeats: int) -> list[Ratio]:
        """A row for each number of workers."""
        part = "training with the language model" if language_model else "audio part"
        options = {"repeats": repeats, "warm_up": 0, "device": self.arguments.device, "clock": self.arguments.clock}
        rows = []
        for workers in self.arguments.workers:
            name = f"{part}, {workers} workers: cached / not cached"
            print(f"measuring {name} ...", flush=True)
            rows.append(ratio_in_turns(name, *self.calls(workers, language_model), **options))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder or Hub id of a base model (default: Whisper tiny.en with SmolLM2-135M)")
    parser.add_argument("--folder", type=Path, default=Path(".speed"), help="folder for models, clips and features")
    add_options(parser, "cache")
    parser.add_argument("--clips", type=int, default=32, help="clips in an epoch")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each clip")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--repeats", type=int, default=5, help="of the audio part; 0 leaves it out")
    parser.add_argument("--language-model-repeats", type=int, default=3, help="0 leaves out the language model")
    arguments = parse(parser)
    if arguments.clock == "cpu" and any(arguments.workers):
        parser.error("--clock cpu does not count the time of workers; pass --workers 0, or leave it out")
    torch.manual_seed(0)
    benchmark = Benchmark(arguments)
    setting = (
        f"{os.cpu_count()} CPUs. {arguments.clips} clips of {arguments.seconds:g} s, batches of {arguments.batch_size}; "
        f"{arguments.repeats} alternating repeats, {arguments.language_model_repeats} with the language model."
    )
    rows = []
    if arguments.repeats:
        rows += benchmark.run(language_model=False, repeats=arguments.repeats)
    if arguments.language_model_repeats:
        rows += benchmark.run(language_model=True, repeats=arguments.language_model_repeats)
    report(arguments, describe(arguments), setting, ratio_table(rows))


if __name__ == "__main__":
    main()
