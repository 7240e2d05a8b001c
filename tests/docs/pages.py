"""The blocks of code in the README and in docs/, and what is said of how each is run.

A comment before a block says how. It is seen in the source, and not on the page:

    <!-- run: slow -->          run with the slow tests; `now`, the default, with every test run
    <!-- run: parse -->         its commands go through the real argument parsers and config loader
    <!-- run: now with a=1 -->  `discojax.launch` is given these settings too, so that it is quick
    <!-- file: my_loss.py -->   no command: it is saved under this name where the page's others run
    <!-- command: tests -->     one with a name; .ci/run runs `tests`, `slow` and `tpu`. It is parsed here

Python blocks of a page run in order in one namespace, shell blocks in order between them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Literal, NamedTuple

from markdown_it import MarkdownIt

from discojax.launch import _COMMANDS

__all__ = [
    "PAGES",
    "ROOT",
    "Block",
    "blocks",
    "commands",
    "inline",
    "launched",
    "looks_like_a_command",
    "quiet",
]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_RUN = {"python", "bash"}
_SHOWN = {"", "text", "json", "yaml", "toml"}  # what is read and never run
_COMMENT = re.compile(r"<!-- (?P<key>run|file|command): (?P<value>\S+)(?: with (?P<settings>.+?))? -->\s*$")

How = Literal["now", "slow", "parse", "file"]


class Block(NamedTuple):
    """A block: its language, text and first line, how it is run, and settings added or its file's name."""

    language: str
    text: str
    line: int
    how: How
    settings: tuple[str, ...] = ()
    file: str = ""


def blocks(page: str) -> list[Block]:
    """Those of a page's text that are run or saved, in order.

    Raises:
      ValueError: a block is in a language, or after a comment, that nothing here knows how to run.
    """
    found, before = [], ""
    for token in MarkdownIt("commonmark").parse(page):
        if token.type == "html_block":
            before = token.content.strip()
            continue
        if token.type == "fence":
            found.append(_block(token.info.strip(), token.content, token.map[0] + 2, before))
        before = ""
    return [block for block in found if block is not None]


def _block(language: str, text: str, line: int, comment: str) -> Block | None:
    match = _COMMENT.match(comment)
    if comment.startswith(("<!-- run", "<!-- file", "<!-- command")) and match is None:
        raise ValueError(f"line {line}: {comment!r} says nothing that is known")
    key, value, settings = match.group("key", "value", "settings") if match else ("run", "now", None)
    if key == "file":
        return Block(language, text, line, "file", file=value)
    if language in _SHOWN or language.startswith("{"):  # {toctree} and the like are Sphinx's own
        return None
    if language not in _RUN:
        raise ValueError(f"line {line}: nothing is known of how to run {language!r}")
    how = "parse" if key == "command" else value
    if how not in ("now", "slow", "parse") or (how == "parse" and language == "python"):
        raise ValueError(f"line {line}: {language} cannot be run {value!r}")
    return Block(language, text, line, how, tuple(shlex.split(settings or "")))


def looks_like_a_command(line: str) -> bool:
    """Whether a line of text that is not run is one that somebody would type."""
    return bool(re.match(r"\s*(\$ |python3? |pip |discojax )", line))


def commands(text: str) -> list[list[str]]:
    """The single commands of a shell block, as words, comments and variables' assignments left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def inline(page: str) -> list[str]:
    """Commands in a page's sentences and tables, but for those with a word that stands for another."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    programs = "|".join(("python3?", "pytest", "pip", "sphinx-build", *_COMMANDS))
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    known = (span for span in spans if re.match(rf"({programs}) ", span))
    # `train --policy` says which option is meant, and is no command yet.
    return [span for span in known if not re.search(r"\b[A-Z]{3,}\b|…|^\w+ --\w+$", span)]


def launched(words: list[str]) -> list[str] | None:
    """What follows `python -m discojax.launch` in a command, None for any other."""
    if re.fullmatch(r"(\S*/)?python3?", words[0]) and words[1:3] == ["-m", "discojax.launch"]:
        return words[3:]
    return words[1:] if words[0] == "discojax" else None


def quiet(block: Block) -> str:
    """A shell block's text with its settings added to each `discojax.launch`."""
    if not block.settings:
        return block.text
    joined = block.text.replace("\\\n", " ")
    added = " ".join(map(shlex.quote, block.settings))
    return re.sub(r"(?m)^(.*-m discojax\.launch\b[^#&|;\n]*)", rf"\1 {added} ", joined)
