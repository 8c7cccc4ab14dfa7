"""Spoken-SQuAD: spoken question answering."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder


# Questions and folder of the audio.
SPLITS = {"train": ("spoken_train-v1.1.json", "train_wav"), "test": ("spoken_test-v1.1.json", "dev_wav")}

_CLIP = re.compile(r"(?P<paragraph>\d+_\d+)_(?P<sentence>\d+)\.wav")


@register_recipe("spoken-squad")
class SpokenSquad(Recipe):
    """
    Spoken-SQuAD (Lee et al., Interspeech 2018; arXiv 1804.00320), for extractive spoken question answering.

    The questions are JSON files in SQuAD's format, made of its training and development set. The audio is synthesized
    speech, one file `topic_paragraph_sentence.wav` for each sentence (counted from 0 in the JSON file). A question is asked
    about a paragraph, so its sentences are joined, in order and without a pause, to a new file in the output folder.

    The answers are spans of the transcripts of a speech recognizer, in lower case. The first one is the answer; if
    annotators gave different ones, `references` has them all.
    """

    title = "Spoken-SQuAD"
    task = "sqa"
    metrics = ("squad_f1", "exact_match")
    license = "CC BY-SA 4.0. https://github.com/Chia-Hsuan-Lee/Spoken-SQuAD"
    layout = """\
spoken_train-v1.1.json
spoken_test-v1.1.json
train_wav/                       (of Spoken-SQuAD_audio.zip)
  0_0_0.wav                      (topic, paragraph, sentence)
dev_wav/"""

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        return {
            split: source.has(questions) and _audio_folder(source, audio) is not None
            for split, (questions, audio) in SPLITS.items()
        }

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        questions, audio = SPLITS[split]
        folder = _audio_folder(source, audio) or audio
        sentences: dict[str, dict[int, str]] = defaultdict(dict)
        for name in source.files(folder, ".wav"):
            if match := _CLIP.fullmatch(name):
                sentences[match["paragraph"]][int(match["sentence"])] = f"{folder}/{name}"
        topics = _field(source.json(questions), "data", list)
        if topics is None:
            raise ValueError(
                f'{source.path(questions)} is not in the format of SQuAD 1.1, {{"data": [{{"paragraphs": ...}}]}}. '
                "Download it again."
            )
        for topic_number, topic in enumerate(topics):
            for paragraph_number, paragraph in enumerate(_field(topic, "paragraphs", list) or []):
                key = f"{topic_number}_{paragraph_number}"
                for number, question in enumerate(_field(paragraph, "qas", list) or []):
                    yield _to_item(question, f"{questions}, {key}, question {number + 1}", sentences.get(key, {}))


def _to_item(question: Any, name: str, sentences: dict[int, str]) -> Item | Skipped:
    identifier, text = _field(question, "id", str), _field(question, "question", str)
    answers = [_field(answer, "text", str) for answer in _field(question, "answers", list) or []]
    references = tuple(dict.fromkeys(answer.strip() for answer in answers if answer is not None and answer.strip()))
    if not identifier or not text or not text.strip() or not references:
        return Skipped("id, question or answer is missing or empty", name)
    if not sentences:
        return Skipped("the paragraph has no audio", name)
    if sorted(sentences) != list(range(len(sentences))):
        return Skipped("a sentence of the paragraph has no audio", name)
    return Item(
        identifier,
        references[0],
        tuple(sentences[number] for number in sorted(sentences)),
        question=" ".join(text.split()),
        references=references if len(references) > 1 else (),
    )


def _field(value: Any, name: str, kind: type) -> Any:
    field = value.get(name) if isinstance(value, dict) else None
    return field if isinstance(field, kind) else None


def _audio_folder(source: SourceFolder, name: str) -> str | None:
    return source.first(name, f"Spoken-SQuAD_audio/{name}")
