"""A user's own evaluator, `module:function`: called with the config and the path of the ONNX file."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.errors import EvaluationError, UsageError
from nas.objectives import OBJECTIVES

__all__ = ["evaluate_with_plugin", "load_evaluator"]

DEFAULT_OBJECTIVE = "bits_per_byte"
_NOT_ITS_OWN = frozenset(name for name, info in OBJECTIVES.items() if info.source != "quality")


def load_evaluator(name: str) -> Callable[[TransformerConfig, str], Any]:
    """The function that `module:function` names; modules of the current folder are found.

    Raises:
        UsageError: the name, the module or the function is wrong; says what would be right.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"evaluator {name!r} is not of the form module:function")
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(_import_fault(name, module_name, error)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"evaluator {name!r}: module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def evaluate_with_plugin(name: str, config: TransformerConfig, onnx_path: str | Path) -> dict[str, Figure]:
    """Figures by objective, origin measured, from the user's evaluator `function(config, onnx_path)`.

    A number means bits_per_byte; a dict holds one number per objective.

    Raises:
        UsageError: there is no such evaluator.
        EvaluationError: reason crash (it raised, or returned no numbers) or numerics (a number is not finite).
    """
    function = load_evaluator(name)
    try:
        returned = function(config, str(onnx_path))
    except (EvaluationError, MemoryError):  # their reason is known
        raise
    except Exception as error:
        text = f"evaluator {name} raised {type(error).__name__}: {error}"
        raise EvaluationError(text, reason="crash") from error
    values = returned if isinstance(returned, Mapping) else {DEFAULT_OBJECTIVE: returned}
    if not values:
        raise EvaluationError(f"evaluator {name} returned an empty dict; a number is needed", reason="crash")
    return {objective: _figure(name, objective, value) for objective, value in values.items()}


def _import_fault(name: str, module_name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
        return f"evaluator {name!r}: no module {module_name} in {Path.cwd()} or among the installed packages"
    return f"evaluator {name!r}: module {module_name} cannot be imported: {type(error).__name__}: {error}"


def _figure(name: str, objective: object, value: object) -> Figure:
    if not isinstance(objective, str):
        raise EvaluationError(f"evaluator {name} returned {objective!r} where a name belongs", reason="crash")
    if objective in _NOT_ITS_OWN:
        text = f"evaluator {name} returned {objective}, which Archfront counts or measures itself"
        raise EvaluationError(text, reason="crash")
    if isinstance(value, str | bool) or not hasattr(value, "__float__"):  # NumPy and PyTorch scalars are numbers, too
        text = f"evaluator {name} returned {value!r} for {objective}; a number is needed"
        raise EvaluationError(text, reason="crash")
    number = float(value)
    if not math.isfinite(number):
        raise EvaluationError(f"evaluator {name} returned {number} for {objective}", reason="numerics")
    return Figure(value=number, origin="measured")
