"""The keyword parameters of plugins: types with bounds, and the check of values against annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1)]
"""An integer of at least 1, such as a number of restarts."""
Natural = Annotated[int, Field(ge=0)]
"""An integer of at least 0, such as the number of steps of a binary search."""
Positive = Annotated[float, Field(gt=0)]
"""A number above 0, such as a step size."""
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def refusal(function: Callable[..., Any], name: str, value: object) -> str | None:
    """Returns what a plugin's parameter must be if ``value`` is refused, otherwise None.

    The parameter's annotation decides. If it cannot be checked, the type of the parameter's default decides. An integer
    is allowed for a float. True and false are not numbers. Infinity and NaN are refused.
    """
    parameter = inspect.signature(function).parameters[name]
    try:
        adapter = TypeAdapter[Any](_annotation(function, parameter), config=_STRICT)
    except Exception:  # Names that only type checkers see, types that pydantic does not know.
        default = parameter.default
        adapter = TypeAdapter(Any if default is None else type(default), config=_STRICT)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        allowed = [problem["msg"].removeprefix("Input should be ") for problem in error.errors()]
        return " or ".join(dict.fromkeys(allowed))
    return None


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Returns a parameter's annotation, evaluated in the module that defines the function."""
    if parameter.annotation is parameter.empty:
        raise TypeError("not annotated")
    if isinstance(parameter.annotation, str):
        return eval(parameter.annotation, vars(inspect.getmodule(inspect.unwrap(function))))
    return parameter.annotation
