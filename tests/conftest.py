"""What every test shares: one thread per worker, and the folder of reference data."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository, or the one named by PRIMESVT_SHARED."""
    folder = Path(os.environ.get("PRIMESVT_SHARED", ROOT.parent / "shared"))
    if folder.is_dir():
        return folder
    message = f"reference data not found at {folder}; set PRIMESVT_SHARED to its folder"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was compared with the reference files, by whichever worker."""
    reports = terminalreporter.getreports("passed")
    found = [said for report in reports for name, said in report.user_properties if name == "said"]
    if found:
        terminalreporter.section("compared with the official code")
    for line in sorted(found):
        terminalreporter.line(line)
