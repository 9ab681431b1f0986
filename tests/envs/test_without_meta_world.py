"""Everything but the Meta-World families works without the package; asking for one says how to install it."""

import subprocess
import sys

from helpers import ROOT

BLOCKED = """
import sys
sys.modules["metaworld"] = None  # as if it were not installed
import get_datasets
get_datasets.main(sys.argv[1:])
"""


def test_one_line_that_says_how_to_install_it(tmp_path):
    flags = ["--env_type", "metaworld_push", "--recipe", "debug", "--data_type", "random", "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "pip install -r requirements-metaworld.txt -c constraints.txt" in line
    assert not any(tmp_path.iterdir())
