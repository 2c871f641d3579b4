"""What holds for every test: nothing of the user's own is touched, and nothing is skipped in silence."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_user_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores, quiet times and the code that transformers copies from checkpoints go to folders of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHFRONT_DATA", str(tmp_path_factory.mktemp("user-data")))
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("hf-modules")))
        patch.delenv("ARCHFRONT_STORE", raising=False)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On a user's machine a missing program is a skip, listed at the end; in CI it is a failure, save for a GPU."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
