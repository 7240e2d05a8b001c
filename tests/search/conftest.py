"""Shared by the tests of the search: the toy laboratory."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for `import toy`
