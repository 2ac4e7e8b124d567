"""Damaged photos of every format: none ends the process, is slow, or takes much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MUTANTS = int(os.environ.get("CWF_MUTANTS", "120"))
"""Of each format; 5,000 take a minute."""


def test_no_mutant_of_any_format_does_harm():
    folder = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, str(folder / "photo_mutants.py"), str(MUTANTS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder.parent), str(folder)))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) >= 8
    for line in found:
        assert 0 < line["decoded"] < line["mutants"] == MUTANTS
        assert line["slowest"] < 5, line
        assert line["grew"] < 1024, line  # MiB
