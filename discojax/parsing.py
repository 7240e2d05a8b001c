"""Turns at Python's own parser.

`ast.parse` and `ast.literal_eval` (which `numpy.load` uses for every header) count how deep they are in one
place for all threads before Python 3.11.8 and 3.12.2: two at once may end in "SystemError: AST constructor
recursion depth mismatch" (python/cpython#106905). Proposals are parsed in a thread of their own.
"""

from __future__ import annotations

import threading

__all__ = ["PARSING"]

PARSING = threading.RLock()
"""Held by whoever parses while another thread may."""
