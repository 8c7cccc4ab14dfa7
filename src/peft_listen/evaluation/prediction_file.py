"""A file of predictions that several processes write and that an interrupted run continues."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audio.addresses import is_url
from ..data import Example, Prediction, read_predictions
from ..data.schema import prediction_problem
from ..files import atomic_path, check_output_file, write_errors
from ..rows import bare_row, has_messages
from ..settings_record import SettingsRecord, fingerprint


# Characters of one line of a part, beyond which it is not read.
_MAX_LINE = 64 << 20


@dataclass(frozen=True)
class _Batch:
    """The stored results of one batch, with one item per example."""

    number: int
    answers: list[str]
    scores: list[float | None]
    errors: list[str | None]

    @property
    def has_errors(self) -> bool:
        return any(self.errors)


class PredictionFile:
    """
    JSON lines of examples with their field `generated`, in the order of the examples.

    The examples are divided into batches of `batch_size` in their order, so that each batch, and with it the rounding errors
    of padding, is the same in every run. Until all are there, the answers to finished batches are in the folder
    `PATH.parts`, in one file for each process that ran, and `PATH.settings.json` has the settings. A line that a killed
    process has not finished does not count, so its batch is answered again.

    A row that has no answer, because its clip cannot be loaded, has the field `error` and an empty `generated`.

    Args:
        path (`str` or `os.PathLike`): the file.
        examples (`Sequence[Example]`): the examples, see [`~peft_listen.data.read_examples`].
        settings (`Mapping[str, Any]`): what else determines the answers: the model, the settings of generation. Values that
            JSON can represent.
        batch_size (`int`, defaults to 8): examples per batch.
        scored_tasks (`Collection[str]`, *optional*): tasks whose rows have a `score`.
        accepts_errors (`bool`, defaults to `False`): whether rows without an answer count as answered. If not, their batches
            are answered again.

    Raises:
        ValueError: if `batch_size` is below 1, there are no examples, or [`read`] would refuse one: it has no `answer` or
            `task`, its `messages` do not end with the assistant's, a clip is not a path or URL, ...
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        examples: Sequence[Example],
        settings: Mapping[str, Any],
        batch_size: int = 8,
        scored_tasks: Collection[str] = (),
        accepts_errors: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if not examples:
            raise ValueError("There are no examples to answer.")
        _check_rows(examples)
        self.path = Path(path)
        self._scored_tasks = frozenset(scored_tasks)
        self._accepts_errors = accepts_errors
        self._parts_read: dict[int, _Batch] = {}
        self.batches = [list(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)]
        self.settings = {
            **settings,
            "batch_size": batch_size,
            "num_examples": len(examples),
            "examples": fingerprint([dict(example) for example in examples]),
        }
        self._record = SettingsRecord(self.path.with_name(f"{self.path.name}.settings.json"))
        self._parts = self.path.with_name(f"{self.path.name}.parts")
        # A file of its own, so that nothing is appended to a line that a killed process has not finished.
        self._part = self._parts / f"{uuid.uuid4().hex}.jsonl"

    def prepare(self, overwrite: bool = False) -> None:
        """
        Checks what is there, and creates the folder of the parts. With several processes, only one calls this method.

        Args:
            overwrite (`bool`, defaults to `False`): start again instead of continuing or refusing.

        Raises:
            ValueError: if the file, or its parts, are from other settings; the message lists the differences.
            OSError: if the file cannot be written.
        """
        if overwrite and not self.path.is_dir():
            check_output_file(self.path)
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self._parts, ignore_errors=True)
            self._record.path.unlink(missing_ok=True)
        check_output_file(self.path)
        changes = self._record.changes(self.settings)
        if changes is None and (self.path.exists() or self._parts.exists()):
            existing = self.path if self.path.exists() else self._parts
            raise ValueError(
                f"{existing} exists, and {self._record.path.name}, which would tell how it was made, does not. Name another "
                "file, or overwrite it (--overwrite)."
            )
        if changes:
            state = "was made" if self.path.exists() else "was begun"
            raise ValueError(
                f"{self.path} {state} with other settings:\n  "
                + "\n  ".join(changes)
                + "\nUse these again, name another file, or overwrite it (--overwrite)."
            )
        if self.is_finished:
            shutil.rmtree(self._parts, ignore_errors=True)  # a run that was killed at its end
            return
        if changes is None:
            self._record.write(self.settings)
        self._parts.mkdir(exist_ok=True)

    @property
    def is_finished(self) -> bool:
        """Whether the file is complete."""
        return self.path.exists()

    def answers(self) -> dict[int, list[str]]:
        """Returns the answers to the finished batches by the number of the batch."""
        finished: dict[int, _Batch] = {}
        for path in sorted(self._parts.glob("*.jsonl")):
            if not path.is_file() or path.is_symlink():
                continue
            with open(path, "rb") as file:
                while line := file.readline(_MAX_LINE):
                    found = self._parse(line)
                    if found is None or (found.has_errors and not self._accepts_errors):
                        continue
                    # A row whose clip was mended has an answer in a later part.
                    if found.number not in finished or finished[found.number].has_errors:
                        finished[found.number] = found
        self._parts_read = finished
        return {number: batch.answers for number, batch in finished.items()}

    def _parse(self, line: bytes) -> _Batch | None:
        if not line.endswith(b"\n"):
            return None
        try:
            fields = json.loads(line)
            batch, answers, scores = fields["batch"], fields["generated"], fields.get("scores")
            errors = fields.get("errors")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        is_whole = (
            type(batch) is int
            and 0 <= batch < len(self.batches)
            and isinstance(answers, list)
            and len(answers) == len(self.batches[batch])
            and all(isinstance(answer, str) for answer in answers)
        )
        if not is_whole:
            return None
        rows = self.batches[batch]
        errors = [None] * len(rows) if errors is None else errors
        are_errors = (
            isinstance(errors, list)
            and len(errors) == len(rows)
            and all(error is None or (isinstance(error, str) and error) for error in errors)
        )
        scores = [None] * len(rows) if scores is None else scores
        if not are_errors or not isinstance(scores, list) or not self._are_scores(rows, scores, errors):
            return None
        return _Batch(batch, answers, scores, errors)

    def _are_scores(self, rows: Sequence[Example], scores: Sequence[Any], errors: Sequence[str | None]) -> bool:
        """Whether the rows of the scored tasks that have an answer have numbers, and the others have none."""
        return len(scores) == len(rows) and all(
            (type(score) is float and math.isfinite(score))
            if row["task"] in self._scored_tasks and error is None
            else score is None
            for row, score, error in zip(rows, scores, errors, strict=True)
        )

    def add(
        self,
        batch: int,
        answers: Sequence[str],
        scores: Sequence[float | None] | None = None,
        errors: Sequence[str | None] | None = None,
    ) -> None:
        """
        Stores the answers to one batch.

        Args:
            batch (`int`): number of the batch.
            answers (`Sequence[str]`): one answer per example, an empty one for those with an error.
            scores (`Sequence[float]`, *optional*): one finite score per example, `None` for those of tasks without scores and
                those with an error.
            errors (`Sequence[str]`, *optional*): why an example has no answer, `None` for those that have one.

        Raises:
            ValueError: if their number is not that of the examples, or a score is missing or not finite.
            OSError: if they cannot be written.
        """
        if len(answers) != len(self.batches[batch]):
            raise ValueError(
                f"The batch {batch} has {len(self.batches[batch])} examples, and there are {len(answers)} answers."
            )
        fields: dict[str, Any] = {"batch": batch, "generated": list(answers)}
        errors = [None] * len(answers) if errors is None else list(errors)
        if any(errors):
            fields["errors"] = errors
        if self._scored_tasks:
            fields["scores"] = list(scores or [])
            if not self._are_scores(self.batches[batch], fields["scores"], errors):
                raise ValueError(
                    f"The batch {batch} needs one finite score for each row of {', '.join(sorted(self._scored_tasks))}, got "
                    f"{fields['scores']}. Check the weights of the model; in float16 they may overflow."
                )
        line = json.dumps(fields) + "\n"
        with write_errors(self._part), open(self._part, "a", encoding="utf-8") as file:
            file.write(line)

    def finish(self) -> None:
        """
        Writes the file from its parts, and removes these. With several processes, only one calls this method, after all
        have added their batches.

        Raises:
            OSError: if a batch is missing, because processes do not share the folder, or the file cannot be written.
        """
        answers = self.answers()
        missing = [batch for batch in range(len(self.batches)) if batch not in answers]
        if missing:
            raise OSError(
                f"{len(missing)} of {len(self.batches)} batches have no answers in {self._parts}. Make sure that all "
                "processes use the same folder, and run the command again: it continues with the missing ones."
            )
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for number, examples in enumerate(self.batches):
                batch = self._parts_read[number]
                columns = (examples, batch.answers, batch.scores, batch.errors)
                for example, generated, score, error in zip(*columns, strict=True):
                    row: dict[str, Any] = {**example, **(bare_row(example) if has_messages(example) else {})}
                    row |= {"audio": self._from_here(row["audio"]), "generated": generated}
                    # A row of former predictions has its own.
                    row.pop("error", None)
                    row |= {"error": error} if error is not None else {}
                    if score is not None:
                        row["score"] = score
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        shutil.rmtree(self._parts, ignore_errors=True)

    def _from_here(self, audio: Any) -> Any:
        """The paths of clips relative to the folder of this file, as `read_predictions` expects them."""
        if isinstance(audio, (list, tuple)):
            return [self._from_here(clip) for clip in audio] or None
        if audio is None or is_url(audio) or os.path.isabs(audio):
            return audio
        try:
            return os.path.relpath(audio, self.path.parent)
        except ValueError:  # another drive
            return os.path.abspath(audio)

    def read(self) -> list[Prediction]:
        """
        Reads the complete file.

        Raises:
            OSError: if it is not complete.
            ValueError: if it was changed since, or has rows without an answer that are not accepted.
        """
        predictions = read_predictions(self.path)
        expected = sum(map(len, self.batches))
        if len(predictions) != expected:
            raise ValueError(
                f"{self.path} has {len(predictions)} predictions, but {expected} were written. Restore it, or overwrite it "
                "(--overwrite)."
            )
        skipped = [row["error"] for row in predictions if "error" in row]
        if skipped and not self._accepts_errors:
            raise ValueError(
                f"{self.path} has {len(skipped)} rows that were skipped; the first: {skipped[0]}\nMend the clips and "
                "overwrite the file (--overwrite), or accept the skipped rows (--on-bad-clip skip)."
            )
        return predictions


def _check_rows(examples: Sequence[Example]) -> None:
    """Refuses rows that could not be read from the file: their answers would be generated in vain."""
    for number, example in enumerate(examples):
        fields: dict[str, Any] = dict(example)
        if isinstance(fields.get("audio"), (list, tuple)):
            fields["audio"] = list(fields["audio"]) or None  # as `finish` writes it
        if problem := prediction_problem(fields):
            raise ValueError(f"Row {number} of the examples cannot be a line of predictions: {problem}")
