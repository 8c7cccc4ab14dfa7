"""LibriSQA, part I: spoken question answering."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder


@register_recipe("librisqa")
class LibriSqa(Recipe):
    """
    LibriSQA, part I (Zhao et al., arXiv 2308.10390), for spoken question answering with free answers.

    The questions and answers are JSON files, lists of objects with `speech_path`, `text`, `question` and `answer`; the
    clips are those of LibriSpeech, train-clean-360 for training and test-clean for the test. `speech_path` is taken from
    its split on, and with `.flac` for `.wav`, since LibriSpeech is published as FLAC. The multiple-choice questions of
    part II are not read.
    """

    title = "LibriSQA (part I)"
    task = "sqa"
    metrics = ("rouge_l", "squad_f1")
    license = "CC BY 4.0 for the clips of LibriSpeech; for the questions, see https://huggingface.co/datasets/ZihanZhao/LibriSQA"
    layout = """\
LibriSQA-PartI/                  (or the files themselves)
  LibriSQA-PartI-train.json
  LibriSQA-PartI-test.json
LibriSpeech/                     (or its splits beside the JSON files)
  train-clean-360/
  test-clean/"""

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        return {split: _questions_file(source, split) is not None for split in ("train", "test")}

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        file = _questions_file(source, split) or ""
        rows = source.json(file)
        if not isinstance(rows, list):
            raise ValueError(
                f"{source.path(file)} contains a {type(rows).__name__}; expected a list of objects with speech_path, "
                "question and answer."
            )
        for number, row in enumerate(rows):
            name = f"{file}, row {number + 1}"
            fields = _text_fields(row, ("speech_path", "question", "answer"))
            if fields is None:
                yield Skipped("speech_path, question or answer is missing or empty", name)
                continue
            path, question, answer = fields
            # Several questions are asked about one clip.
            yield Item(f"{PurePosixPath(path).stem}-{number}", answer, (_clip(source, path),), question=question)


def _text_fields(row: Any, names: tuple[str, ...]) -> list[str] | None:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        return None
    texts = [row[name].strip() for name in names]
    return texts if all(texts) else None


def _questions_file(source: SourceFolder, split: str) -> str | None:
    name = f"LibriSQA-PartI-{split}.json"
    return source.first(name, f"LibriSQA-PartI/{name}", f"LibriSQA/LibriSQA-PartI/{name}", f"LibriSQA/{name}")


def _clip(source: SourceFolder, path: str) -> str:
    """Where a clip of LibriSpeech is: below the split's folder, whatever precedes it in `speech_path`."""
    parts = PurePosixPath(path.removesuffix(".wav").removesuffix(".flac") + ".flac").parts
    # split, speaker, chapter, clip
    inside = "/".join(parts[-4:]) if ".." not in parts else "/".join(parts)
    return source.first(f"LibriSpeech/{inside}", inside) or f"LibriSpeech/{inside}"
