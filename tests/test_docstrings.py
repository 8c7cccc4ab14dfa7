"""Every public name says what it takes, in which shape, and what it refuses."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest

import peft_listen
import peft_listen.evaluation
import peft_listen.metrics
import peft_listen.runs
import peft_listen.training


MODULES = (peft_listen, peft_listen.training, peft_listen.evaluation, peft_listen.metrics, peft_listen.runs)


def public_callables():
    """The public functions and classes, and the public methods that these add to their bases."""
    for name, value in {name: getattr(module, name) for module in MODULES for name in module.__all__}.items():
        yield name, value
        if not inspect.isclass(value):
            continue
        inherited = {attribute for base in value.__mro__[1:] for attribute in vars(base)}
        for method_name, method in vars(value).items():
            function = inspect.unwrap(getattr(method, "__func__", method))
            if inspect.isfunction(function) and not method_name.startswith("_") and method_name not in inherited:
                yield f"{name}.{method_name}", function


CALLABLES = dict(public_callables())
each_callable = pytest.mark.parametrize("name", CALLABLES)


def parameters_of(value):
    """Names and types of what is passed to it; for a class, to its constructor."""
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        own = inspect.get_annotations(value)
        return {field.name: str(field.type) for field in dataclasses.fields(value) if field.name in own}
    if inspect.isclass(value):
        constructor = value.__dict__.get("__init__")
        return {} if constructor is None else parameters_of(constructor)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(value).parameters.items()
        if parameter.kind in named and name not in ("self", "cls")
    }


def raised_by(value):
    """Names of the exceptions that its own lines raise; for a class, those of its constructor."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    nodes = [tree]
    if inspect.isclass(value):
        constructors = ("__init__", "__post_init__")
        nodes = [n for n in tree.body[0].body if isinstance(n, ast.FunctionDef) and n.name in constructors]
    raises = [each.exc for node in nodes for each in ast.walk(node) if isinstance(each, ast.Raise)]
    return {each.func.id for each in raises if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)}


@each_callable
def test_every_public_name_has_a_docstring(name):
    assert inspect.getdoc(CALLABLES[name]), name


@each_callable
def test_every_parameter_is_described_with_the_shape_of_tensors(name):
    documentation = inspect.getdoc(CALLABLES[name])
    # Another entry may describe them: "see [`~AudioListenModel.get_encoder_features`]".
    refers = re.search(r"(?i)\bsee \[`|^\[`\w+`\] for ", documentation) is not None
    for parameter, annotation in parameters_of(CALLABLES[name]).items():
        described = re.search(rf"^\s*(\w+, )*{parameter}(, \w+)* \(|`{parameter}`", documentation, flags=re.MULTILINE)
        assert described or refers, f"{name} does not describe {parameter}"
        if re.match(r"(typing\.)?(Optional\[)?(<class ')?torch\.\w*Tensor", annotation):
            assert "shape" in documentation or re.search(r"`\([\w, ]+\)`", documentation) or refers, (
                f"{name} does not give the shape of {parameter}"
            )


@each_callable
def test_every_error_that_is_raised_is_described(name):
    documentation = inspect.getdoc(CALLABLES[name])
    for error in raised_by(CALLABLES[name]):
        assert re.search(rf"\b{error}\b", documentation), f"{name} does not say when it raises {error}"
