"""Search spaces by name: those that an installed package offers, such as `nas`, of which this one knows nothing."""

from __future__ import annotations

from importlib.metadata import EntryPoint, distributions

from estimator.errors import InputError
from estimator.space_fitting.candidates import CandidateSpace

__all__ = ["GROUP", "find_space"]

GROUP = "archfront.spaces"


def find_space(name: str) -> CandidateSpace:
    """The space of that name, or that a file describes.

    Raises:
        InputError: no package offers spaces, or none knows this one; says what would be right.
    """
    refusals = []
    for entry in _offers():
        try:
            space: CandidateSpace = entry.load()(name)
        except InputError as error:
            refusals.append(error)
        else:
            return space
    if refusals:
        raise refusals[0]
    raise InputError(f"no installed package offers search spaces (entry point {GROUP}); install archfront again")


def _offers() -> list[EntryPoint]:
    """Every entry point of the group, also of a package whose older metadata lies before it on the path."""
    found = {entry for package in distributions() for entry in package.entry_points.select(group=GROUP)}
    return sorted(found, key=lambda entry: entry.name)
