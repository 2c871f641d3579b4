"""Everything that `estimator` raises on purpose.

EstimatorError
├── InputError            what was given is not understood        (exit code 3)
│   ├── ConfigError       a field is missing, unknown or impossible
│   ├── UnsupportedModelError
│   ├── UnknownDeviceError
│   └── CorruptFileError
└── RunError              understood, but it could not be done    (exit code 1)
    ├── BuildError
    ├── MeasurementError
    └── StorageFullError
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "ConfigError",
    "CorruptFileError",
    "EstimatorError",
    "InputError",
    "MeasurementError",
    "RunError",
    "StorageFullError",
    "UnknownDeviceError",
    "UnsupportedModelError",
]


class EstimatorError(Exception):
    """Something went wrong in the estimator."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class InputError(EstimatorError, ValueError):
    """The input is not understood."""

    exit_code = 3


class ConfigError(InputError):
    """A field of the config is missing, unknown or impossible."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnsupportedModelError(InputError):
    """The model type is not one that the readers know."""


class UnknownDeviceError(InputError):
    """No device of that name is in the table."""


class CorruptFileError(InputError):
    """The file cannot be read as what its name says."""


class RunError(EstimatorError):
    """The request was understood, but it could not be carried out."""


class BuildError(RunError):
    """The ONNX graph could not be built."""


class MeasurementError(RunError):
    """The measurement did not end with a result."""

    def __init__(self, message: str, *, reason: str = "crash") -> None:
        super().__init__(message)
        self.reason = reason


class StorageFullError(RunError):
    """There is no space left to write the file."""
