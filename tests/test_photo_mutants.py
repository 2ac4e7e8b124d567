"""Damaged photos of every format: none ends the process, is slow, or takes much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_stores
import fuzz_targets
import fuzz_web
import pytest

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


# What `fuzz.py` begins with, of the targets that are made at once


def test_every_target_of_the_fuzzing_driver_is_there():
    makers = {**vars(fuzz_targets), **vars(fuzz_stores), **vars(fuzz_web)}
    for name in fuzz_targets.WEIGHTS:
        assert name.startswith("photo-") or callable(makers[name.replace("-", "_")]), name


@pytest.mark.filterwarnings("ignore::cwf_milvus.errors.PhotoWarning")
@pytest.mark.parametrize(
    "make",
    [
        fuzz_targets.exif,
        fuzz_targets.lean,
        fuzz_targets.whitening,
        fuzz_targets.checkpoint,
        fuzz_targets.certainty,
        fuzz_targets.truth,
        fuzz_targets.revisited,
        fuzz_targets.metadata,
        fuzz_targets.report,
        fuzz_stores.vectors,
    ],
)
def test_no_reader_has_another_error_for_what_is_cut_short(make, tmp_path):
    target, wholes = make(tmp_path)
    for whole in wholes:
        for end in (len(whole), 0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            target(whole[:end])
