"""IEMOCAP: emotion recognition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder


SESSIONS = range(1, 6)

# The usual four classes; "excited" counts as "happy".
LABELS = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
_LABEL_LINE = re.compile(r"\[[^\]]*\]\t(?P<turn>[^\t]+)\t(?P<label>[^\t]+)\t\[[^\]]*\]\s*")


@register_recipe("iemocap")
class Iemocap(Recipe):
    """
    IEMOCAP (Busso et al., 2008), for emotion recognition among four classes.

    The rule is the usual one, which is also SUPERB's: of the turns that the annotators agreed on, those labeled angry,
    happy, excited, neutral and sad count, and excited is merged into happy; all others are left out. In the published
    release that gives 5531 turns: 1103 angry, 1636 happy, 1708 neutral and 1084 sad.

    Results are reported for leave-one-session-out. `session1` to `session5` are the published sessions, each with two
    speakers of its own: test on one of them, and train on `without-session1` to `without-session5`, the other four.

    Labels are read from `dialog/EmoEvaluation/*.txt`, from the lines `[start - end]<tab>turn<tab>emotion<tab>[v, a, d]`.
    The columns of the Hub are those of `superb`, configuration `er`.
    """

    title = "IEMOCAP"
    task = "er"
    metrics = ("accuracy",)
    license = "By request, for research. https://sail.usc.edu/iemocap/iemocap_release.htm"
    layout = """\
IEMOCAP_full_release/            (or its parent folder)
  Session1/                      (to Session5)
    dialog/EmoEvaluation/
      Ses01F_impro01.txt
    sentences/wav/Ses01F_impro01/
      Ses01F_impro01_F000.wav"""
    hub = "superb (configuration er)"
    hub_columns = ("file", "label")

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        found = {session: _labels_folder(source, session) is not None for session in SESSIONS}
        held_out = {f"session{session}": found[session] for session in SESSIONS}
        return held_out | {f"without-session{session}": all(found.values()) for session in SESSIONS}

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        number = int(split[-1])
        for session in SESSIONS:
            if (session == number) != split.startswith("without-"):
                yield from self._session(source, session)

    def _session(self, source: SourceFolder, session: int) -> Iterator[Item | Skipped]:
        labels = _labels_folder(source, session) or ""
        wav = f"{labels.removesuffix('dialog/EmoEvaluation')}sentences/wav"
        for dialog in source.files(labels, ".txt"):
            for name, line in source.lines(f"{labels}/{dialog}"):
                if isinstance(line, Skipped):
                    yield line
                elif line.startswith("["):
                    match = _LABEL_LINE.fullmatch(line)
                    if match is None:
                        yield Skipped("the line has not the form [start - end] turn emotion [v, a, d]", name)
                        continue
                    turn = match["turn"]
                    yield _to_item(turn, match["label"], (f"{wav}/{turn.rpartition('_')[0]}/{turn}.wav",))

    def from_hub(self, row: Mapping[str, Any]) -> Item | Skipped:
        return _to_item(row["file"].replace("\\", "/").rpartition("/")[2].removesuffix(".wav"), row["label"], ())


def _to_item(turn: str, label: str, clips: tuple[str, ...]) -> Item | Skipped:
    if label not in LABELS:
        return Skipped("the emotion is not one of the four classes", turn, by_rule=True)
    return Item(turn, LABELS[label], clips)


def _labels_folder(source: SourceFolder, session: int) -> str | None:
    folder = f"Session{session}/dialog/EmoEvaluation"
    return source.first(folder, f"IEMOCAP_full_release/{folder}")
