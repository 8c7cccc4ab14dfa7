"""AudioCaps: audio captioning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder


COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm")


@register_recipe("audiocaps")
class AudioCaps(Recipe):
    """
    AudioCaps (Kim et al., NAACL 2019), for audio captioning.

    The captions are `train.csv`, `val.csv` and `test.csv` of cdjkim/audiocaps, with the columns `audiocap_id`,
    `youtube_id`, `start_time` and `caption`. A clip is 10 s of a video from `start_time` on. The audio is not published:
    users download it from YouTube, and videos that have been removed since then are missing. So a clip is looked for
    under the names that the usual download scripts give it, in the folder of its split: `youtube_id`, with or without a
    `Y` before it and `_start_time` after it, or `audiocap_id`.

    In training a clip has one caption. In `val` and `test` it has five: one row is written, with the first caption as its
    answer and all of them as `references`. The columns of the Hub are those of `OpenSound/AudioCaps`.
    """

    title = "AudioCaps"
    task = "acap"
    metrics = ("cider", "rouge_l")
    license = "MIT for the captions; the videos remain their owners'. https://github.com/cdjkim/audiocaps"
    layout = """\
train.csv, val.csv, test.csv     (or in dataset/)
train/, val/, test/              (or in audio/, or all clips in audio/)
  vfY_TJq7n_U.wav                (youtube_id; other names and endings are listed in the documentation)"""
    hub = "OpenSound/AudioCaps"
    hub_columns = COLUMNS

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        return {
            split: _table(source, split) is not None and _folder(source, split) is not None
            for split in ("train", "val", "test")
        }

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        folder = _folder(source, split) or split
        clips: dict[str, str] = {}
        for ending in ENDINGS:
            for name in source.files(folder, ending):
                clips.setdefault(name.removesuffix(ending), f"{folder}/{name}")
        captions: dict[tuple[str, str], list[dict[str, str]]] = {}
        for name, row in source.table(_table(source, split) or f"{split}.csv", COLUMNS, ",", quoted=True):
            if isinstance(row, Skipped):
                yield row
            elif not row["caption"].strip():
                yield Skipped("the caption is empty", name)
            elif split == "train":
                yield _to_item([row], clips, folder)
            else:
                captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
        for rows in captions.values():
            yield _to_item(rows, clips, folder)

    def from_hub(self, row: Mapping[str, Any]) -> Item | Skipped:
        identifier, caption = str(row["audiocap_id"]), " ".join(row["caption"].split())
        return Item(identifier, caption) if caption else Skipped("the caption is empty", identifier)

    def rows_from_hub(self, rows: Iterable[Mapping[str, Any]], split: str) -> Iterator[tuple[int, Item | Skipped]]:
        grouped: dict[tuple[str, str], list[tuple[int, Item]]] = {}
        for index, row in enumerate(rows):
            item = self.from_hub(row)
            if split.startswith("train") or isinstance(item, Skipped):
                yield index, item
            else:
                grouped.setdefault((str(row["youtube_id"]), str(row["start_time"])), []).append((index, item))
        for group in grouped.values():
            captions = tuple(dict.fromkeys(item.answer for _, item in group))
            index, first = group[0]
            yield index, replace(first, references=captions if len(captions) > 1 else ())


def _to_item(rows: list[dict[str, str]], clips: dict[str, str], folder: str) -> Item:
    captions = tuple(dict.fromkeys(" ".join(row["caption"].split()) for row in rows))
    stems = [stem for row in rows for stem in _stems(row)]
    clip = next((clips[stem] for stem in stems if stem in clips), f"{folder}/{rows[0]['youtube_id']}.wav")
    return Item(rows[0]["audiocap_id"], captions[0], (clip,), references=captions if len(captions) > 1 else ())


def _stems(row: Mapping[str, str]) -> Iterable[str]:
    """The names that download scripts give to a clip."""
    video, start = row["youtube_id"], row["start_time"]
    for name in (video, f"{video}_{start}"):
        yield name
        yield f"Y{name}"
    if start.isdecimal():
        yield f"{video}_{start}_{int(start) + 10}"
        yield f"{video}_{int(start) * 1000}_{int(start) * 1000 + 10_000}"
    yield row["audiocap_id"]


def _table(source: SourceFolder, split: str) -> str | None:
    return source.first(f"{split}.csv", f"dataset/{split}.csv")


def _folder(source: SourceFolder, split: str) -> str | None:
    return source.first(f"audio/{split}", split, f"wav/{split}", "audio", "wav")
