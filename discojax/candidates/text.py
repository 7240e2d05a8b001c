"""Stage 1, text: what may be parsed at all. At most 4 kB of printable ASCII."""

from __future__ import annotations

import textwrap

from discojax.candidates.errors import CandidateError

__all__ = ["LARGEST_SOURCE", "check_text"]

LARGEST_SOURCE = 4096
"""Bytes. The published candidates have 700 to 1,900."""

_DEEPEST_BRACKETS = 60
_OPENING, _CLOSING = "([{", ")]}"


def check_text(source: object) -> str:
    """Stage 1: returns the text with common indentation removed and plain line ends.

    ASCII, because Python folds look-alike characters in names (a full-width `os` parses as `os`),
    and brackets of bounded depth, because Python's own parser recurses on them.

    Raises:
      CandidateError: at stage "text".
    """
    if not isinstance(source, str):
        raise CandidateError("text", None, f"a candidate is text, got {type(source).__name__}")
    if not source.strip():
        raise CandidateError("text", None, "the candidate is empty; write one function `def loss(...)`")
    size = len(source.encode("utf-8", "replace"))
    if size > LARGEST_SOURCE:
        raise CandidateError("text", None, f"{size} bytes; a candidate has at most {LARGEST_SOURCE}")
    text = source.replace("\r\n", "\n")
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        for character in line:
            if not (" " <= character <= "~" or character == "\t"):
                raise CandidateError(
                    "text", number, f"the character U+{ord(character):04X} is not ASCII text"
                )
            if character in _OPENING:
                depth += 1
                if depth > _DEEPEST_BRACKETS:
                    raise CandidateError(
                        "text",
                        number,
                        f"brackets nested over {_DEEPEST_BRACKETS} deep; name intermediate values",
                    )
            elif character in _CLOSING:
                depth = max(depth - 1, 0)
    if "```" in text:
        fenced = text[: text.index("```")].count("\n") + 1
        raise CandidateError("text", fenced, "Markdown fences found; send the function's text alone")
    return textwrap.dedent(text)
