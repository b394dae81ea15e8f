"""The benchmark scripts run, at sizes at which their figures say nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.skipif(shutil.which("timeout") is None, reason="benchmarks/gpu.sh needs the coreutils' timeout")
def test_the_pages_of_a_gpu_are_written_on_any_machine(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "BENCHMARKS_TINY": "1", "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), str(tmp_path / "pages")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.stem for path in (tmp_path / "pages").glob("*.md")}
    assert pages == {"training", "inference", "utilisation", "memory", "first_run", "time_to_quality"}
