"""Which control shows a setting: derived from its type, bounds and default, never from its name."""

import math
import typing
from typing import Any, Literal, NamedTuple

import annotated_types
import numpy as np

from ..config import bounds

SMALL = 100  # whole numbers with at most so many values get a slider
FINE = 0.01  # a default nearer to the lower bound than this share of the range would be lost on a linear slider
DECADES = 3  # a logarithmic slider goes so far below the default where the bound is 0


class Kind(NamedTuple):
    """`shape` is what is typed or chosen; `scale` the slider beside a number, from `low` to `high` (log: their exponents of 10), or None for no slider."""

    shape: Literal["choice", "check", "text", "list", "number"]
    scale: Literal["linear", "log"] | None = None
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    whole: bool = False
    choices: tuple[str, ...] = ()


def kind_of(field) -> Kind:
    """The control for a pydantic field of a setting.

    >>> from adaback_lite.config import setting_names
    >>> kind_of(setting_names()["curriculum.tau"])[:5]
    ('number', 'linear', 0.0, 1.5, 0.01)
    >>> kind_of(setting_names()["grpo.lr"])[:4]
    ('number', 'log', -7.0, 0.0)
    """
    annotation = field.annotation
    if typing.get_origin(annotation) is Literal:
        return Kind("choice", choices=typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return Kind("list")
    if annotation is bool:
        return Kind("check")
    if annotation is str:
        return Kind("text")
    return _number(field, annotation is int)


def _number(field, whole: bool) -> Kind:
    low, high = bounds(field)
    if low is None or high is None:
        return Kind("number", whole=whole)
    if whole:
        return Kind("number", "linear", low, high, 1, True) if high - low <= SMALL else Kind("number", whole=True)
    default = field.default
    if default == low or default - low >= FINE * (high - low):
        step = _step(high - low, default - low)
        open_low = any(isinstance(m, annotated_types.Gt) for m in field.metadata)
        open_high = any(isinstance(m, annotated_types.Lt) for m in field.metadata)
        return Kind("number", "linear", float(low) + step * open_low, float(high) - step * open_high, step)
    lowest = math.log10(low) if low > 0 else math.floor(math.log10(default)) - DECADES
    return Kind("number", "log", float(lowest), math.log10(high), 0.05)


def _step(length: float, default: float) -> float:
    """The largest of 1, 2, 5, 10, ... that divides the range into at least 100 parts, and of which the default is a multiple."""
    for exponent in range(math.floor(math.log10(length)) - 1, -8, -1):
        for digit in (5, 2, 1):
            step = float(f"{digit}e{exponent}")
            if step <= length / 100 * (1 + 1e-9) and abs(default / step - round(default / step)) < 1e-6:
                return step
    return length / 1000


def as_text(value: Any) -> str:
    """A setting's value as one would type it; it reads back as the same value.

    >>> as_text(3e-4), as_text(0.05), as_text(5.0), as_text((1e-4, 0.2)), as_text(7)
    ('3e-4', '0.05', '5', '1e-4 0.2', '7')
    """
    if isinstance(value, tuple | list):
        return " ".join(map(as_text, value))
    if not isinstance(value, float):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if abs(value) >= 1e-3 else np.format_float_scientific(value, trim="-", exp_digits=1)


def as_value(kind: Kind, text: str) -> Any:
    """What was typed, for config.py to check: it turns '3e-4' into a number. A list's parts stand apart by spaces or commas."""
    return text.replace(",", " ").split() if kind.shape == "list" else text.strip() if kind.shape == "number" else text
