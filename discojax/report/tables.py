"""Tables in the terminal, all alike."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["captioned", "plain"]


def plain(title: str = "") -> Table:
    """A table with a line below its headings and nothing around it."""
    return Table(
        title=Text(title) if title else None,
        header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip


def captioned(table: Table, caption: str) -> RenderableType:
    """The table with a text below it, which is whole also where the table is wider than the terminal."""
    return Group(table, Text(caption, style="table.caption")) if caption else table
