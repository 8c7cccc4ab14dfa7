"""Base class of the metrics, which keeps the inputs in memory and validates them."""

from __future__ import annotations

import importlib
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from ..unicode import half_surrogate_problem


try:
    import evaluate
    from datasets import Features, List, Value
except ImportError as error:
    raise ImportError('Metrics need evaluate: pip install "peft-listen[metrics]"') from error


class BaseMetric(evaluate.Metric):
    """
    Base class of metrics on texts. A subclass describes the metric in its docstring, implements
    `_compute(predictions, references)`, and accepts its own options as keyword arguments of the constructor, with
    `**settings` for the arguments below.

    Unlike `evaluate.Metric`, it keeps the inputs in memory when a single process uses it, so it needs no cache folder
    and several metrics can be in use at the same time. It raises an error for inputs that would give a wrong value.

    Args:
        num_process (`int`, defaults to 1): number of processes that each add a part of the inputs. `compute` returns
            the result in process 0 and `None` in the others.
        process_id (`int`, defaults to 0): rank of this process.
        experiment_id (`str`, *optional*): with several processes, a name that no other evaluation on this file system
            uses at the same time.
        cache_dir (`str`, *optional*): with several processes, a folder that all of them can access. Defaults to
            `evaluate`'s folder, `~/.cache/huggingface/metrics`.
        timeout (`float`, defaults to 100): with several processes, how many seconds to wait for the others.

    Raises:
        ImportError: if the library of the metric is not installed.
    """

    library: ClassVar[str | None] = None
    """Module that `_compute` needs. It is imported by the constructor, so a missing library is found before a long run."""
    citation_text: ClassVar[str] = ""
    """BibTeX of the metric."""
    higher_is_better: ClassVar[bool] = True
    """Whether a higher value is better."""
    largest_value: ClassVar[float] = 1.0
    """The best value if higher is better, and the value of a useless system otherwise: 100 for metrics in percent."""
    takes_several_references: ClassVar[bool] = False
    """Whether a row of `references` may be a list of texts. If so, `_compute` receives a list for every row."""
    compared_answers: tuple[str, str] | None = None
    """
    For a metric of scores: two answers to a question. The score of a row is the log-probability of the first minus that of
    the second, and its reference is 1 if the first is correct and 0 if the second is.
    """

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
        # The folder would only hold inputs on disk. It is not created without them, so a read-only home folder is fine.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> dict[str, Any] | None:
        """
        Computes the metric on the given predictions and references together with those added before.

        Args:
            predictions (`Sequence`, *optional*): one per row.
            references (`Sequence`, *optional*): one per row, in the same order.

        Returns:
            `dict` with the value under the name of the metric, or `None` in all but the first of several processes.

        Raises:
            ValueError: if there are no rows, the two differ in length, or a row has the wrong type or an invalid value.
        """
        if kwargs:
            raise ValueError(
                f"`compute` accepts `predictions` and `references`, but also got {sorted(kwargs)}. Pass options to "
                f"`get_metric({self.name!r}, ...)`."
            )
        if predictions is None and references is None:
            if len(self) == 0:
                raise ValueError(
                    "There are no rows to compute: pass `predictions` and `references`, or call `add` or `add_batch` "
                    "first."
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
            predictions (`Sequence`): one per row.
            references (`Sequence`): one per row, in the same order.

        Raises:
            ValueError: if there are no rows, the two differ in length, or a row has the wrong type or an invalid value.
        """
        predictions, references = self._checked(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """
        Adds one row for a later `compute()`.

        Args:
            prediction (`Any`): prediction of the row.
            reference (`Any`): reference of the row.

        Raises:
            ValueError: if either has the wrong type or an invalid value.
        """
        (prediction,), (reference,) = self._checked([prediction], [reference])
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _checked(self, predictions: Any, references: Any) -> tuple[list, list]:
        columns = {}
        for name, column in (("predictions", predictions), ("references", references)):
            if column is None:
                raise ValueError(f"`{name}` is missing: pass `predictions` and `references`.")
            if isinstance(column, str) or not hasattr(column, "__iter__"):
                raise ValueError(f"`{name}` must be a list with one entry per row, got {column!r}.")
            columns[name] = list(column)
        rows, expected = len(columns["predictions"]), len(columns["references"])
        if rows != expected:
            raise ValueError(f"There are {rows} predictions, but {expected} references; pass one of each per row.")
        if rows == 0:
            raise ValueError("There are no predictions and no references; a metric needs at least one row.")
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
        """Returns the prediction in the form that is stored; raises a `ValueError` that names it `name` if it is invalid."""
        if not isinstance(value, str):
            raise ValueError(f"`{name}` must be a string, got {value!r}.")
        if problem := half_surrogate_problem(value):
            raise ValueError(f"`{name}` {problem}")
        return value

    def _check_reference(self, value: Any, name: str) -> Any:
        """Returns one reference in the form that is stored; raises a `ValueError` that names it `name` if it is invalid."""
        if not isinstance(value, str):
            kinds = "a string or a list of strings" if self.takes_several_references else "a string"
            raise ValueError(f"`{name}` must be {kinds}, got {value!r}.")
        if problem := half_surrogate_problem(value):
            raise ValueError(f"`{name}` {problem}")
        return value

    @abstractmethod
    def _compute(self, predictions: list, references: list) -> dict[str, Any]:
        """Returns the value under the metric's name, and any further values."""
