"""
A second device without hardware, to find tensors that are on the wrong device: `"simulated"`.

A tensor on it holds a tensor on the CPU, with which the operations are computed, so the results are those of the CPU. It
reports another device, though, and behaves as on a GPU: an operation on tensors of two devices is an error, and so is a
conversion to NumPy. torch calls it as a backend in Python.

It is stricter than CUDA in one respect: an index must be on the device too. CUDA copies an index from the CPU, and waits for the
device; here only the code of other libraries may do so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing


NAME = "simulated"
SIMULATED = f"{NAME}:0"

# Variable of a process whose tests use the device. torch counts its devices in the first backward pass of a process, so the
# device must be known before it.
OWN_PROCESS = "PEFT_LISTEN_TEST_SIMULATED"

# The experimental functions of torch that this module needs.
IS_SUPPORTED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

_aten = torch.ops.aten

# Operators that read a tensor of one device and write one of another.
_COPIES = {_aten._to_copy.default, _aten.copy_.default}

# Operators that take a number from the CPU although they are not element-wise.
_TAKES_NUMBER = {_aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}

# Operators that autocast computes in half precision.
_CAST_BY_AUTOCAST = [
    _aten.linear,
    _aten.matmul,
    _aten.mm,
    _aten.bmm,
    _aten.addmm,
    _aten.conv1d,
    _aten.conv2d,
    _aten.scaled_dot_product_attention,
]

# Operators that `torch.tensor` uses with `__torch_dispatch__` switched off, where the fallback is not found.
_BELOW_PYTHON = [_aten.copy_.default, _aten._local_scalar_dense.default]

# Operators for which torch has a kernel of its own, which fills an empty tensor after changing its shape.
_FACTORIES = [_aten.arange, _aten.eye, _aten.linspace, _aten.logspace, _aten.randperm, _aten.tril_indices]

# Files between an operator and its caller: torch's, this one, and that of the mode which places tensors.
_FILES_BETWEEN = (str(Path(torch.__file__).parent), __file__, str(Path(__file__).with_name("device.py")))
_FOLDERS_OF_THIS_REPOSITORY = tuple(str(Path(__file__).parents[1] / name) for name in ("src", "tests"))

_libraries: list[torch.library.Library] = []


class SimulatedTensor(torch.Tensor):
    """
    A tensor on the simulated device.

    Args:
        source (`torch.Tensor`): its values, on the CPU. They are not copied.
    """

    values: torch.Tensor

    @staticmethod
    def __new__(cls, source: torch.Tensor, requires_grad: bool = False, **kwargs: Any) -> Any:
        if source.device.type != "cpu":  # PEFT makes a parameter on the meta device in this way
            return torch.nn.Parameter(source, requires_grad)
        # In inference mode, a view of a tensor that was made outside of it is not an inference tensor.
        with torch.inference_mode(source.is_inference()) if torch.is_inference_mode_enabled() else nullcontext():
            tensor: SimulatedTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                source.size(),
                strides=source.stride(),
                storage_offset=source.storage_offset(),
                dtype=source.dtype,
                layout=source.layout,
                device=torch.device(NAME, 0),
            )
        tensor.values = source
        return tensor

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new: SimulatedTensor) -> None:
        torch.Tensor.data.__set__(self, new)
        self.values = new.values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(operator, *args, **(kwargs or {}))

    # What torch does not support for subclasses of tensors, or would answer from storage that does not exist.

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.values!r} on {self.device}"

    def __format__(self, specification: str) -> str:
        return self.values.__format__(specification)

    def tolist(self) -> Any:
        return self.values.tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.values, isinstance(self, torch.nn.Parameter), self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = _rebuild(
                self.values.detach().clone(), isinstance(self, torch.nn.Parameter), self.requires_grad
            )
        return memo[id(self)]


def _rebuild(values: torch.Tensor, is_parameter: bool, requires_grad: bool) -> torch.Tensor:
    tensor = SimulatedTensor(values)
    return torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs an operator on the CPU, if its arguments are all on the simulated device."""
    if operator is _aten._fused_sdp_choice.default:
        return 0  # the implementation by elementary operators: the others are chosen by the kind of device
    if operator is _aten.histc.default and not args[0].is_floating_point():
        return _run(operator, args[0].float(), *args[1:], **kwargs).to(args[0].dtype)  # which CUDA counts too
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if operator not in _COPIES:
        _check_placement(operator, tensors)
    if isinstance(generator := kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
    requested = kwargs.get("device")
    is_simulated = bool(tensors) if requested is None else torch.device(requested).type == NAME
    values, options = pytree.tree_map(_values_of, (args, kwargs))
    if requested is not None and is_simulated:
        options = {**options, "device": torch.device("cpu")}
    options.pop("pin_memory", None)
    result = operator(*values, **options)
    for tensor in tensors:
        if isinstance(tensor, SimulatedTensor) and tensor.shape != tensor.values.shape:
            raise NotImplementedError(f"{operator} changes the shape of a tensor in place")
    if not is_simulated:
        return result
    wrapped = pytree.tree_map(lambda leaf: SimulatedTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
    return return_and_correct_aliasing(operator, args, kwargs, wrapped)


def _values_of(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, SimulatedTensor) else leaf


def _check_placement(operator: Any, tensors: Sequence[torch.Tensor]) -> None:
    # As CUDA, element-wise operators take numbers from the CPU.
    takes_number = torch.Tag.pointwise in operator.tags or operator in _TAKES_NUMBER
    devices = {tensor.device for tensor in tensors if tensor.ndim > 0 or not takes_number}
    if len(devices) > 1 and not (operator is _aten.index.Tensor and _is_called_by_another_library()):
        shapes = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{operator}: expected all tensors to be on the same device, but got {shapes}")


def _is_called_by_another_library() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_FILES_BETWEEN):
        frame = frame.f_back
    return frame is not None and not frame.f_code.co_filename.startswith(_FOLDERS_OF_THIS_REPOSITORY)


def _in_autocast_dtype(operator: Any) -> Callable[..., Any]:
    excluded = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(leaf: Any) -> Any:
        is_cast = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32
        return leaf.to(torch.get_autocast_dtype(NAME)) if is_cast else leaf

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return operator(*args, **kwargs)

    return run


class _Module:
    """What torch looks for in `torch.simulated`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False  # it is not the accelerator of this machine, so that other tests in the process do not change

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def device(self, device: Any) -> nullcontext[None]:
        return nullcontext()

    def synchronize(self, device: Any = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    # Random numbers are those of the CPU.

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


@contextmanager
def in_use() -> Iterator[None]:
    """Makes the device usable in this block, in which parameters that are moved remain the same objects, as on a GPU: an
    optimizer that was made before still holds them."""
    register()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def register() -> None:
    """Makes the device known to torch, in this process. It cannot be removed again."""
    if _libraries:
        return
    if not IS_SUPPORTED:
        raise RuntimeError(f"The device `{NAME}` needs a version of torch with backends in Python, such as 2.13.")
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    library.fallback(_run, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for operator in _BELOW_PYTHON:
        aten.impl(operator, partial(_run, operator), "PrivateUse1")
    for packet in _FACTORIES:
        for overload in packet.overloads():
            operator = getattr(packet, overload)
            if any(argument.name == "device" for argument in operator._schema.arguments):
                aten.impl(operator, partial(_run, operator), "PrivateUse1")
    for packet in _CAST_BY_AUTOCAST:
        for overload in packet.overloads():
            operator = getattr(packet, overload)
            aten.impl(operator, _in_autocast_dtype(operator), "AutocastPrivateUse1")
    torch.serialization.add_safe_globals([_rebuild])
    _libraries.extend([library, aten])


class TorchWithoutDevices:
    """`torch`, for a module that forgets the device of each tensor that it makes."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in {"arange", "empty", "full", "linspace", "ones", "tensor", "zeros"}:
            return found
        return lambda *args, device=None, **kwargs: found(*args, **kwargs)
