"""fastfuse against its peers, side by side in one process, and what it knows of its kernels. `make bench` runs it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the case tables
