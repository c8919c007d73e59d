"""Let the tests import the scripts, which aren't installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
