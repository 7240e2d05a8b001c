"""Shared by the tests of what people look at."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `import runs`
