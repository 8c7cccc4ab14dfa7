"""What `speech_chunk_multiple` saves and what it changes: time, Whisper's features, and a trained model's answers.

    python -m benchmarks.speed.speech_chunks MODEL DATA.jsonl [--multiples 5 10] [--seconds 3] [--threads 1]

`MODEL` is the folder of an AudioListen model or of an adapter on one, and `DATA.jsonl` has examples with clips. After
`make demo`, these are `.demo/trained-*/adapter` and `.demo/data/test.jsonl`. Each multiple is compared with 30 s, which is
Whisper's own form:

- time, for one clip of `--seconds`, with batches of 1 and 4, as ratios of alternating calls in one process;
- the speech encoder's features of the clips of the data, on the frames that contain audio;
- answers and their accuracy (exact match), unless `--no-answers` is given.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline

import peft_listen  # noqa: F401 - registers the pipeline
from peft_listen.audio import load_audio
from peft_listen.data import read_examples
from peft_listen.metrics import get_metric

from .command import add_options, describe, parse, report, turn_options
from .ratios import Ratio, ratio_in_turns, ratio_table


SAMPLING_RATE = 16_000
OWN_FORM = 30  # seconds
BATCH_SIZES = (1, 4)


class Benchmark:
    """
    Compares multiples with 30 s.

    Args:
        arguments (`argparse.Namespace`): the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        dtype = getattr(torch, arguments.dtype)
        self.pipe: Any = pipeline(
            "audio-text-to-text", model=str(arguments.model), device=arguments.device, dtype=dtype
        )
        self.model, self.processor = self.pipe.model.eval(), self.pipe.processor
        self.examples = [example for example in read_examples(arguments.data) if example["audio"] is not None]

    def set_multiple(self, seconds: int) -> None:
        self.model.config.speech_chunk_multiple = self.processor.speech_chunk_multiple = seconds

    def inputs(self, seconds: int, waveforms: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Inputs for a question about each clip, with spectrograms of the length at which the clips are encoded."""
        self.set_multiple(seconds)
        text = [f"{self.processor.audio_token}What do you hear?"] * len(waveforms)
        return dict(self.processor(text=text, audio=waveforms, sampling_rate=SAMPLING_RATE).to(self.model.device))

    def time(self, multiple: int) -> Iterator[Ratio]:
        """Ratios of the time at a multiple to that at 30 s."""
        generator = np.random.default_rng(0)
        for batch_size in BATCH_SIZES:
            shape = (batch_size, round(self.arguments.seconds * SAMPLING_RATE))
            waveforms = list(generator.normal(scale=0.1, size=shape).astype(np.float32))
            forms = {form: self.inputs(form, waveforms) for form in (multiple, OWN_FORM)}
            audio = {
                form: {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
                for form, inputs in forms.items()
            }

            def encode(form: int, audio: dict[int, Any] = audio) -> None:
                self.set_multiple(form)
                self.model.get_encoder_features(**audio[form])

            def forward(form: int, inputs: dict[int, Any] = forms) -> None:
                self.set_multiple(form)
                self.model(**inputs[form], logits_to_keep=1)

            def process(form: int, waveforms: list[np.ndarray] = waveforms) -> None:
                self.inputs(form, waveforms)

            for name, call in (("processor", process), ("encoders", encode), ("forward", forward)):
                yield ratio_in_turns(
                    f"{name}, {multiple} s / {OWN_FORM} s, batch {batch_size}",
                    lambda call=call: call(multiple),
                    lambda call=call: call(OWN_FORM),
                    **turn_options(self.arguments),
                )

    def features(self, multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compares the features of every frame with audio.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: cosine of the features of both forms, and norm of their difference
            divided by the norm of the features at 30 s, both of shape `(frames,)`.
        """
        cosines, differences = [], []
        for waveforms in self._batches():
            both = []
            for form in (multiple, OWN_FORM):
                self.set_multiple(form)
                inputs = self.processor(audio=waveforms, sampling_rate=SAMPLING_RATE).to(self.model.device)
                encoded = self.model.get_encoder_features(**inputs)
                both.append(encoded.speech_features[encoded.audio_features_mask.bool()].float().cpu())
            ours, own = both
            cosines.append(torch.cosine_similarity(ours, own, dim=-1))
            differences.append((ours - own).norm(dim=-1) / own.norm(dim=-1))
        return torch.cat(cosines), torch.cat(differences)

    def _batches(self, batch_size: int = 8) -> Iterator[list[np.ndarray]]:
        for start in range(0, len(self.examples), batch_size):
            yield [load_audio(example["audio"]) for example in self.examples[start : start + batch_size]]

    def answers(self, multiple: int) -> list[str]:
        self.set_multiple(multiple)
        questions = [{"audio": example["audio"], "text": example["instruction"]} for example in self.examples]
        outputs = self.pipe(questions, max_new_tokens=8, do_sample=False, batch_size=8)
        return [output[0]["generated_text"].strip() for output in outputs]

    @torch.no_grad()
    def run(self) -> list[str]:
        """The tables."""
        print("measuring times ...", flush=True)
        trained_with = self.model.config.speech_chunk_multiple
        times = ratio_table([ratio for multiple in self.arguments.multiples for ratio in self.time(multiple)])
        print("measuring features ...", flush=True)
        lines = ["| features | cosine: mean | cosine: 5 % of frames below | relative difference: median | frames |"]
        lines.append("|---|---|---|---|---|")
        for multiple in self.arguments.multiples:
            cosine, difference = self.features(multiple)
            cells = [
                f"{cosine.mean():.3f}",
                f"{cosine.quantile(0.05):.3f}",
                f"{difference.median():.2f}",
                f"{len(cosine)}",
            ]
            lines.append(f"| {multiple} s compared with {OWN_FORM} s | {' | '.join(cells)} |")
        answers = [self.compare_answers(trained_with)] if self.arguments.answers else []
        return [times, "\n".join(lines), *answers]

    def compare_answers(self, trained_with: int) -> str:
        print("measuring answers ...", flush=True)
        lines = [
            f"| answers | accuracy | equal to those at {trained_with} s, with which it was saved |",
            "|---|---|---|",
        ]
        references = [example["answer"] for example in self.examples]
        own = self.answers(trained_with)
        for multiple in sorted({trained_with, *self.arguments.multiples, OWN_FORM}):
            answers = own if multiple == trained_with else self.answers(multiple)
            accuracy = get_metric("exact_match").compute(predictions=answers, references=references)["exact_match"]
            equal = sum(map(str.__eq__, answers, own))
            lines.append(f"| {multiple} s | {accuracy:.0%} | {equal} of {len(answers)} |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a model, or of an adapter on one")
    parser.add_argument("data", type=Path, help="JSON lines of examples")
    parser.add_argument("--multiples", type=int, nargs="+", default=[5, 10], help="seconds (default: 5 10)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the timed clips (default: 3)")
    add_options(parser, "speech_chunks")
    parser.add_argument("--no-answers", dest="answers", action="store_false", help="compare only time and features")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--warm-up", type=int, default=2)
    arguments = parse(parser)
    setting = f"Clips of {arguments.seconds:g} s; {arguments.repeats} alternating repeats."
    report(arguments, describe(arguments), setting, *Benchmark(arguments).run())


if __name__ == "__main__":
    main()
