"""Real faults against running jobs, by scripts/torture_faults.py: five minutes of it."""

import runpy
import sys

import pytest
from helpers.paths import ROOT

SCRIPT = ROOT / "scripts" / "torture_faults.py"


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its faults are those of Linux")
def test_real_faults_lose_nothing_and_are_told_of() -> None:
    """No job hangs or ends with a traceback, and the model has the bits of an undisturbed run."""
    script = runpy.run_path(str(SCRIPT))
    found = script["torture"](300.0, sys.maxsize, 0, tuple(script["OF"]))
    assert found["wrong"] == []
    assert found["trials"] > 0
