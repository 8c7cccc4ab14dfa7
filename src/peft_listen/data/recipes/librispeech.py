"""LibriSpeech: speech recognition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder


SPLITS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)


@register_recipe("librispeech")
class LibriSpeech(Recipe):
    """
    LibriSpeech (Panayotov et al., ICASSP 2015; openslr.org/12), for automatic speech recognition.

    Each chapter has a folder with its clips, `84-121123-0000.flac`, and their transcripts in `84-121123.trans.txt`, one
    line `84-121123-0000 GO DO YOU HEAR` per clip. The transcripts are published in capitals without punctuation; the
    answers are in lower case. The columns of the Hub are those of `openslr/librispeech_asr`.
    """

    title = "LibriSpeech"
    task = "asr"
    metrics = ("wer",)
    license = "CC BY 4.0. https://www.openslr.org/12"
    layout = """\
LibriSpeech/                     (or its parent folder)
  train-clean-100/               (one folder for each split)
    103/1240/                    (speaker, chapter)
      103-1240.trans.txt
      103-1240-0000.flac"""
    hub = "openslr/librispeech_asr"
    hub_columns = ("id", "text")

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        return {split: _split_folder(source, split) is not None for split in SPLITS}

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        root = _split_folder(source, split)
        for speaker in source.folders(root or split):
            for chapter in source.folders(f"{root}/{speaker}"):
                folder = f"{root}/{speaker}/{chapter}"
                transcripts = source.files(folder, ".trans.txt")
                if not transcripts:
                    yield Skipped("the chapter has no .trans.txt", folder)
                for transcript in transcripts:
                    for name, line in source.lines(f"{folder}/{transcript}"):
                        if isinstance(line, Skipped):
                            yield line
                            continue
                        clip, _, text = line.partition(" ")
                        yield _to_item(clip, text, name, (f"{folder}/{clip}.flac",))

    def from_hub(self, row: Mapping[str, Any]) -> Item | Skipped:
        return _to_item(row["id"], row["text"], row["id"], ())


def _to_item(clip: str, text: str, name: str, clips: tuple[str, ...]) -> Item | Skipped:
    text = " ".join(text.lower().split())
    return Item(clip, text, clips) if text else Skipped("the transcript is empty", name)


def _split_folder(source: SourceFolder, split: str) -> str | None:
    return source.first(split, f"LibriSpeech/{split}")
