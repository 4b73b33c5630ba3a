"""Of a case that a hunt found, the test to add stands below the failure, as it is: also from another process."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    found: Any = getattr(call.excinfo.value, "test_to_add", None) if call.excinfo else None
    if found:
        report.sections.append(("the smallest case as a test to add", found))
    return report
