"""
The device of the tests, which the variable `PEFT_LISTEN_TEST_DEVICE` names: the CPU, another device of torch such as
`cuda`, or `simulated` (see `simulated_device.py`).

On another device than the CPU, what a test makes is on that device: the models of the shared builders and those that the test
loads, tensors, and the outputs of processors. What the library makes is where the library places it, as for a user who
moves a model and its inputs; a default device of torch would hide its mistakes. On the CPU, nothing is changed.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.utils.data
from peft.auto import _BaseAutoPeftModel
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map_only
from transformers import Pipeline, PreTrainedModel, TrainingArguments
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tests import simulated_device


VARIABLE = "PEFT_LISTEN_TEST_DEVICE"

# The variable by which accelerate, and so `Trainer`, finds a device that it does not know.
_TRAINER_DEVICE = "ACCELERATE_TORCH_DEVICE"

_FOLDER = str(Path(__file__).parent) + os.sep

_Placeable = TypeVar("_Placeable", bound=Any)


def named_device(name: str) -> torch.device:
    """A device by its name, with its index, as tensors report it."""
    if name.partition(":")[0] == simulated_device.NAME:
        simulated_device.register()
    device = torch.device(name)
    return device if device.type == "cpu" or device.index is not None else torch.device(device.type, 0)


_device = named_device(os.environ.get(VARIABLE, "cpu"))


def test_device() -> torch.device:
    """The device of the running test."""
    return _device


test_device.__test__ = False  # it is not a test


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Makes another device that of the tests in this block."""
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


def place(found: _Placeable) -> _Placeable:
    """Moves a model, a tensor or a batch to the device of the tests. Anything else is returned as it is, and so are a model
    without values (on the meta device) and what the worker of a data loader makes."""
    if _device.type == "cpu" or torch.utils.data.get_worker_info() is not None:
        return found
    if type(found) is dict:
        return {name: place(value) for name, value in found.items()}
    if isinstance(found, torch.nn.Module) and any(parameter.is_meta for parameter in found.parameters()):
        return found
    return found.to(_device) if hasattr(found, "to") else found


@contextmanager
def placing() -> Iterator[None]:
    """
    Moves what the tests make in this block to their device. Their comparisons accept tensors of different devices, because
    a part of the library's results is on the CPU, and other rounding.
    """
    is_simulated = _device.type == simulated_device.NAME
    with (
        simulated_device.in_use() if is_simulated else nullcontext(),
        pytest.MonkeyPatch.context() as patch,
        _TensorPlacement(),
    ):
        patch.delenv(_TRAINER_DEVICE, raising=False)
        for cls, names in _makers().items():
            for name in names:
                patch.setattr(cls, name, _placed(inspect.getattr_static(cls, name)))
                for subclass in _subclasses(cls):
                    if name in vars(subclass):
                        patch.setattr(subclass, name, _placed(vars(subclass)[name]))
        # By default, convolutions on CUDA round float32 to TF32, which is not the CPU's result.
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(torch, "from_numpy", _placed(torch.from_numpy))  # which modes do not see
        patch.setattr(torch.testing, "assert_close", _compared_on_the_cpu(torch.testing.assert_close))
        patch.setattr(TrainingArguments, "__post_init__", _training_on_device(TrainingArguments.__post_init__))
        patch.setattr(Pipeline, "__init__", _answering_on_device(Pipeline.__init__))
        yield


def _makers() -> dict[type, tuple[str, ...]]:
    """Methods that make models and inputs, of the classes and of their subclasses."""
    # Imported here, because the tests of the tuner also run with versions of transformers that the audio model needs more of.
    from peft_listen import AudioListenForCausalLM, AudioListenProcessor, BeatsFeatureExtractor
    from peft_listen.models.beats.modeling_beats import BeatsPreTrainedModel
    from peft_listen.training import AudioListenCollator

    return {
        PreTrainedModel: ("from_pretrained", "_from_config"),
        _BaseAutoModelClass: ("from_pretrained", "from_config"),
        _BaseAutoPeftModel: ("from_pretrained",),
        AudioListenForCausalLM: ("from_sub_models_pretrained",),
        BeatsPreTrainedModel: ("from_original_checkpoint", "from_original"),
        AudioListenProcessor: ("__call__", "apply_chat_template"),
        BeatsFeatureExtractor: ("__call__",),
        AudioListenCollator: ("__call__",),
    }


def _subclasses(cls: type) -> set[type]:
    return set(cls.__subclasses__()).union(*(_subclasses(subclass) for subclass in cls.__subclasses__()))


def _is_called_by_a_test() -> bool:
    """Whether the caller of the function that calls this one is in the folder of the tests."""
    return sys._getframe(2).f_code.co_filename.startswith(_FOLDER)


def _placed(function: Any) -> Any:
    """A method whose results are placed where a test calls it."""
    is_classmethod = isinstance(function, classmethod)
    original = function.__func__ if is_classmethod else function

    @functools.wraps(original)
    def placed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if _device.type == "cpu" or kwargs.get("device_map") is not None or not _is_called_by_a_test():
            return result
        if isinstance(result, tuple):  # a model and the report of its loading
            return (place(result[0]), *result[1:])
        return place(result)

    return classmethod(placed) if is_classmethod else placed


# Another device rounds otherwise, and the tolerances of the tests are for the CPU.
_TOLERANCE = 10


def _compared_on_the_cpu(function: Callable[..., None]) -> Callable[..., None]:
    def assert_close(actual: Any, expected: Any, **kwargs: Any) -> None:
        tolerances = {name: _TOLERANCE * kwargs[name] for name in ("atol", "rtol") if kwargs.get(name) is not None}
        function(*tree_map_only(torch.Tensor, torch.Tensor.cpu, (actual, expected)), **(kwargs | tolerances))

    return assert_close


def _training_on_device(function: Callable[[TrainingArguments], None]) -> Callable[[TrainingArguments], None]:
    """`TrainingArguments.__post_init__`, with the device of the tests where they set `use_cpu`."""

    def post_init(self: TrainingArguments) -> None:
        os.environ.pop(_TRAINER_DEVICE, None)
        if _device.type != "cpu":
            self.use_cpu = False
            self.dataloader_pin_memory = False  # only tensors on the CPU can be pinned
            os.environ[_TRAINER_DEVICE] = str(_device)
        function(self)

    return post_init


def _answering_on_device(function: Callable[..., None]) -> Callable[..., None]:
    """`Pipeline.__init__`, which moves the model to the device of the tests by default, as to a GPU. Otherwise it would move a
    model from a device that transformers does not know to the CPU."""

    @functools.wraps(function)
    def init(self: Pipeline, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        if _device.type != "cpu" and kwargs.get("device") is None and not hasattr(model, "hf_device_map"):
            kwargs["device"] = _device
        function(self, model, *args, **kwargs)

    return init


class _TensorPlacement(TorchFunctionMode):
    """Places the tensors that are made in the folder of the tests."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.equal and _device.type != "cpu" and _is_called_by_a_test():
            return function(*(tensor.cpu() for tensor in args))
        if _device.type == "cpu" or function not in _device_constructors() or not _is_called_by_a_test():
            return function(*args, **kwargs)
        if kwargs.get("device") is not None:
            return function(*args, **kwargs)
        # Made on the CPU, so that random numbers are the same on every device.
        requires_grad = kwargs.pop("requires_grad", False)
        return place(function(*args, **kwargs)).requires_grad_(requires_grad)
