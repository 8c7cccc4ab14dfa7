"""What the shipped metrics share: they keep their inputs in memory, and say what is wrong with bad ones."""

from __future__ import annotations

import importlib
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar


try:
    import evaluate
    from datasets import Features, List, Value
except ImportError as error:
    raise ImportError('Metrics need evaluate: pip install "peft-listen[metrics]"') from error


class BaseMetric(evaluate.Metric):
    """
    A metric of texts. A subclass says in its docstring what it measures, implements `_compute(predictions, references)`,
    and takes options of its own as keyword arguments of its constructor, with `**settings` for those below.

    Unlike `evaluate.Metric` it keeps the inputs in memory when one process uses it, so that it needs no cache folder
    and any number of metrics can be computed at once, and it refuses what would be counted wrongly.

    Args:
        num_process (`int`, defaults to 1): number of processes that each add a part of the inputs. `compute` returns
            the result in process 0, and `None` in the others.
        process_id (`int`, defaults to 0): this process' rank.
        experiment_id (`str`, *optional*): for several processes: a name that no other evaluation on this file system
            uses at the same time.
        cache_dir (`str`, *optional*): for several processes: a folder that all of them see. Defaults to that of
            `evaluate`, `~/.cache/huggingface/metrics`.
        timeout (`float`, defaults to 100): for several processes: how long to wait for the others, in seconds.
    """

    library: ClassVar[str | None] = None
    """Module that `_compute` needs, imported when the metric is made, so that its absence is known before a long run."""
    citation_text: ClassVar[str] = ""
    """BibTeX of the metric."""
    takes_several_references: ClassVar[bool] = False
    """Whether a row of `references` may be a list of texts. `_compute` is then given a list in every row."""

    def __init__(
        self,
        *,
        num_process: int = 1,
        process_id: int = 0,
        experiment_id: str | None = None,
        cache_dir: str | None = None,
        timeout: float = 100,
    ) -> None:
        if self.library is not None:
            try:
                importlib.import_module(self.library)
            except ImportError as error:
                raise ImportError(
                    f'{type(self).__name__} needs {self.library}: pip install "peft-listen[metrics]"'
                ) from error
        super().__init__(
            keep_in_memory=num_process == 1,
            cache_dir=cache_dir,
            num_process=num_process,
            process_id=process_id,
            experiment_id=experiment_id,
            timeout=timeout,
        )

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)) or "",
            citation=self.citation_text,
            inputs_description="",
            features=self._input_features(),
        )

    def _input_features(self) -> Features:
        text = Value("string")
        return Features({"predictions": text, "references": List(text) if self.takes_several_references else text})

    def _build_data_dir(self) -> str:
        # The folder is for inputs on disk; a home folder that cannot be written to is no hindrance without them.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> dict[str, Any] | None:
        """
        The value over the given predictions and references and those that were added before.

        Args:
            predictions (`Sequence`, *optional*): one a row.
            references (`Sequence`, *optional*): one a row, in the same order.

        Returns:
            `dict`, or `None` in all but the first of several processes.

        Raises:
            ValueError: if there is nothing to compute, the two differ in length, or a row is not what it must be.
        """
        if kwargs:
            raise ValueError(
                f"`compute` takes `predictions` and `references`, got also {sorted(kwargs)}. Options go to "
                f"`get_metric({self.name!r}, ...)`."
            )
        if predictions is None and references is None:
            if len(self) == 0:
                raise ValueError(
                    "There is nothing to compute: pass `predictions` and `references`, or `add` some before."
                )
            return super().compute()
        predictions, references = self._checked(predictions, references)
        return super().compute(predictions=predictions, references=references)

    def add_batch(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> None:
        """
        Adds rows for a later `compute()`.

        Args:
            predictions (`Sequence`): one a row.
            references (`Sequence`): one a row, in the same order.

        Raises:
            ValueError: if there are none, the two differ in length, or a row is not what it must be.
        """
        predictions, references = self._checked(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """
        Adds one row for a later `compute()`.

        Args:
            prediction: the prediction.
            reference: the reference.

        Raises:
            ValueError: if either is not what it must be.
        """
        (prediction,), (reference,) = self._checked([prediction], [reference])
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _checked(self, predictions: Any, references: Any) -> tuple[list, list]:
        columns = {}
        for name, column in (("predictions", predictions), ("references", references)):
            if column is None:
                raise ValueError(f"`{name}` is missing: pass `predictions` and `references`.")
            if isinstance(column, str) or not hasattr(column, "__iter__"):
                raise ValueError(f"`{name}` must be a list with one entry a row, got {column!r}.")
            columns[name] = list(column)
        rows, expected = len(columns["predictions"]), len(columns["references"])
        if rows != expected:
            raise ValueError(f"There are {rows} predictions, but {expected} references; give one of each a row.")
        if rows == 0:
            raise ValueError("There are no predictions and no references: a metric needs at least one row.")
        return (
            [self._check_prediction(value, f"predictions[{row}]") for row, value in enumerate(columns["predictions"])],
            [self._check_references(value, f"references[{row}]") for row, value in enumerate(columns["references"])],
        )

    def _check_references(self, value: Any, name: str) -> Any:
        if not self.takes_several_references:
            return self._check_reference(value, name)
        if isinstance(value, str):
            return [self._check_reference(value, name)]
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError(f"`{name}` must be a string or a list of at least one string, got {value!r}.")
        return [self._check_reference(text, f"{name}[{index}]") for index, text in enumerate(value)]

    def _check_prediction(self, value: Any, name: str) -> Any:
        """Returns a prediction as it is stored, or raises a ValueError that calls it `name`."""
        if not isinstance(value, str):
            raise ValueError(f"`{name}` must be a string, got {value!r}.")
        return value

    def _check_reference(self, value: Any, name: str) -> Any:
        """Returns one reference as it is stored, or raises a ValueError that calls it `name`."""
        if not isinstance(value, str):
            kinds = "a string or a list of strings" if self.takes_several_references else "a string"
            raise ValueError(f"`{name}` must be {kinds}, got {value!r}.")
        return value

    @abstractmethod
    def _compute(self, predictions: list, references: list) -> dict[str, Any]:
        """The value, under the metric's name, and what else is worth knowing."""
