"""Everything that `nas` raises on purpose.

NasError
├── UsageError              what was asked for is not understood           (exit code 2)
│   ├── SpaceError          a search space is wrong
│   ├── ObjectiveError      an objective, a constraint or its unit is unknown
│   └── ImpossibleConstraintError   no candidate can meet it; names the nearest reachable value
├── DataError               the text is missing, binary or too short       (exit code 3)
├── StoreError              the study store cannot be used                 (exit code 1)
│   ├── NotFoundError       no such study or trial                         (exit code 2)
│   ├── StoreVersionError   written by a newer Archfront
│   └── StoreCorruptError   not a database
├── SpaceExhaustedError     every candidate of the space has been proposed (exit code 1)
└── EvaluationError         a candidate failed; stored with the trial, the search goes on
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "EvaluationError",
    "ImpossibleConstraintError",
    "NasError",
    "NotFoundError",
    "ObjectiveError",
    "SpaceError",
    "SpaceExhaustedError",
    "StoreCorruptError",
    "StoreError",
    "StoreVersionError",
    "UsageError",
]


class NasError(Exception):
    """Something went wrong in the search."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class UsageError(NasError, ValueError):
    """What was asked for is not understood."""

    exit_code = 2


class SpaceError(UsageError):
    """The search space is wrong."""


class ObjectiveError(UsageError):
    """The objective, the constraint or its unit is unknown."""


class ImpossibleConstraintError(UsageError):
    """No candidate of the space can meet the constraint."""


class DataError(NasError, ValueError):
    """The text is missing, binary or too short."""

    exit_code = 3


class StoreError(NasError):
    """The study store cannot be used."""


class NotFoundError(StoreError):
    """There is no such study or trial."""

    exit_code = 2


class StoreVersionError(StoreError):
    """The store was written by a newer version of Archfront."""


class StoreCorruptError(StoreError):
    """The store is not a database that can be read."""


class SpaceExhaustedError(NasError):
    """Every candidate of the space that can meet the constraints has been proposed."""


class EvaluationError(NasError):
    """A candidate could not be evaluated.

    `reason` is one of build, out_of_memory, time_limit, crash, numerics, data.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
