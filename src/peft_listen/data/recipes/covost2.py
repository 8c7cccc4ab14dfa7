"""CoVoST 2, English to Chinese: speech translation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder


TABLE = "covost_v2.en_zh-CN"
FOLDERS = (".", "en")


@register_recipe("covost2-en-zh")
class CoVoST2EnZh(Recipe):
    """
    CoVoST 2 (Wang et al., arXiv 2007.10310), English to Chinese, for speech translation.

    The translations are in `covost_v2.en_zh-CN.tsv`, with the columns `path`, `translation` and `split`; the clips are
    those of Common Voice 4 in English. The published rule (`get_covost_splits.py` of facebookresearch/covost) is followed:
    a row counts if its clip is in `validated.tsv`, and the training split consists of the rows marked `train` and
    `train_covost`. The tables that this script writes (`covost_v2.en_zh-CN.train.tsv` and so on) are accepted instead;
    they need no `validated.tsv`. The columns of the Hub are those of `facebook/covost2`, configuration `en_zh-CN`.
    """

    title = "CoVoST 2 (English to Chinese)"
    task = "en2zh"
    metrics = ("bleu", "chrf")
    license = (
        "CC0 1.0 for translations and clips. https://github.com/facebookresearch/covost and "
        "https://commonvoice.mozilla.org/datasets"
    )
    layout = """\
covost_v2.en_zh-CN.tsv           (or in en/; or .train.tsv, .dev.tsv and .test.tsv instead)
en/                              (Common Voice 4 in English; its files may also lie beside the table)
  validated.tsv
  clips/
    common_voice_en_19664034.mp3"""
    hub = "facebook/covost2"
    hub_columns = ("id", "translation")

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        validated = _find(source, "validated.tsv") is not None
        whole = validated and _find(source, f"{TABLE}.tsv") is not None
        return {
            split: whole or _find(source, f"{TABLE}.{split}.tsv") is not None for split in ("train", "dev", "test")
        }

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        clips = _find(source, "clips") or "en/clips"
        of_split = _find(source, f"{TABLE}.{split}.tsv")
        if of_split is not None:
            for name, row in source.table(of_split, ("path", "translation"), "\t", quoted=False):
                yield (
                    row if isinstance(row, Skipped) else _to_item(source, clips, row["path"], row["translation"], name)
                )
            return
        validated = _validated_clips(source)
        marks = {"train", "train_covost"} if split == "train" else {split}
        table = _find(source, f"{TABLE}.tsv") or f"{TABLE}.tsv"
        for name, row in source.table(table, ("path", "translation", "split"), "\t", quoted=False):
            if isinstance(row, Skipped):
                yield row
            elif row["split"] in marks:
                if row["path"] in validated:
                    yield _to_item(source, clips, row["path"], row["translation"], name)
                else:
                    yield Skipped("the clip is not in validated.tsv", name)

    def from_hub(self, row: Mapping[str, Any]) -> Item | Skipped:
        translation = row["translation"].strip()
        return Item(row["id"], translation) if translation else Skipped("the translation is empty", row["id"])


def _find(source: SourceFolder, name: str) -> str | None:
    return source.first(*(name if folder == "." else f"{folder}/{name}" for folder in FOLDERS))


def _validated_clips(source: SourceFolder) -> set[str]:
    table = source.table(_find(source, "validated.tsv") or "validated.tsv", ("path",), "\t", quoted=False)
    return {row["path"] for _, row in table if not isinstance(row, Skipped)}


def _to_item(source: SourceFolder, clips: str, path: str, translation: str, name: str) -> Item | Skipped:
    if not translation.strip():
        return Skipped("the translation is empty", name)
    # Some releases of Common Voice leave out the ending.
    clip = path if path.endswith(".mp3") else f"{path}.mp3"
    return Item(clip.removesuffix(".mp3"), translation.strip(), (f"{clips}/{clip}",))
