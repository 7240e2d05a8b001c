"""Hypothesis strategies for what may reach the gate: programs, broken programs, and noise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import corpus
from hypothesis import strategies as st

from discojax import candidates
from discojax.candidates.vocabulary import BARE, CONSTANTS, DTYPES, FUNCTIONS, METHODS
from discojax.objectives.types import ARGUMENTS

NAMES = (*ARGUMENTS, "rho", "x", "y", "w", "losses")
NUMBERS = ("0", "1", "2", "0.5", "-1.0", "3.7", "1e-6", "1e9", "-0.05", "20", "0.9", "7")
HOSTILE = (
    "__class__", "__import__('os')", "eval", "exec", "open('/etc/passwd')", "os.system('id')", "getattr",
    "jax.pure_callback", "().__class__", "lambda: 0", "f'{x}'", "globals()", "jnp.ones(10**9)", "9**9**9",
    "jax.debug.print", "self.beta", "self.model", "None", "True", "x[0]", "x.at", "[x]", "{x}", "yield",
    "await x", "x if x else y",
)  # fmt: skip
_SIGNS = (
    "+", "-", "*", "/", "**", "%", "//", "@", "&", "|", "^", "~", "<", "<=", ">", ">=", "==", "!=", "=", "+=",
    "(", ")", "[", "]", "{", "}", ",", ":", ";", ".", "'", '"', "#", "\\", "`", ":=", "->", "and", "or",
    "not", "in", "is",
)  # fmt: skip
TOKENS = (
    *NAMES, *NUMBERS, *HOSTILE, *FUNCTIONS, *BARE, *(f".{m}()" for m in METHODS), *CONSTANTS, *DTYPES,
    *_SIGNS,
    "\n", "\n    ", "    ", "return ", "def loss(", "if ", "for ", "while ", "import ", "class ", "axis=0",
    "ddof=1",
    '"""', "\t", "\x00", "é", "ｏｓ", "\ud800", "\u202e", "```",
)  # fmt: skip

SOURCES = tuple(entry.source for entry in (*corpus.hostile(), *corpus.legal()))

_FUNCTIONS = tuple(
    name for name in FUNCTIONS if name.startswith(("jnp.", "jax.nn.", "jax.lax.", "torch.", "F."))
)
_leaves = st.sampled_from((*NAMES[:5], "rho", "x", "rho", "x")) | st.sampled_from(NUMBERS)


def _bigger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    infix = st.sampled_from(["+", "-", "*", "/", "**", "<", ">", "%", "&", "=="])
    return (
        st.builds("({} {} {})".format, inner, infix, inner)
        | st.builds("-{}".format, inner)
        | st.builds("{}({})".format, st.sampled_from(_FUNCTIONS + tuple(BARE)), inner)
        | st.builds("{}({}, {})".format, st.sampled_from(_FUNCTIONS), inner, inner)
        | st.builds("jnp.where({} < {}, {}, {})".format, inner, inner, inner, inner)
        | st.builds("({}).{}()".format, inner, st.sampled_from(tuple(METHODS)))
    )


expressions: st.SearchStrategy[str] = st.recursive(_leaves, _bigger, max_leaves=12)

_plain_functions = (
    "jax.nn.sigmoid",
    "jax.nn.softplus",
    "jax.nn.relu",
    "jnp.tanh",
    "jnp.abs",
    "jnp.square",
    "jnp.mean",
)


def _sensible(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner) | st.builds(
        "{}({})".format, st.sampled_from(_plain_functions), inner
    )


sensible: st.SearchStrategy[str] = st.recursive(_leaves, _sensible, max_leaves=6)
"""Expressions of which many are good losses once added to one."""

programs: st.SearchStrategy[str] = st.builds(
    lambda assigned, result: corpus.body(
        "\n".join([*(f"{n} = {e}" for n, e in assigned), f"return {result}"])
    ),
    st.lists(st.tuples(st.sampled_from(["y", "w", "x", "losses", "rho"]), expressions), max_size=3),
    expressions,
)
"""Texts of the grammar: well formed, and seldom meaningful."""

good_programs: st.SearchStrategy[str] = st.builds(
    lambda e, k: corpus.body(f"return jax.nn.softplus(-x) + {k} * jnp.tanh({e})"),
    sensible,
    st.sampled_from(NUMBERS),
)
"""Texts of which many pass all five stages."""

_edit = st.tuples(st.integers(0, 4000), st.integers(0, 12), st.sampled_from(TOKENS))


def _edited(source: str, edits: list[tuple[int, int, str]]) -> str:
    for position, removed, inserted in edits:
        position %= len(source) + 1
        source = source[:position] + inserted + source[position + removed :]
    return source


mutants: st.SearchStrategy[str] = st.builds(
    _edited, st.sampled_from(SOURCES), st.lists(_edit, min_size=1, max_size=4)
)
"""Texts of the corpus, a few edits away."""

crossed: st.SearchStrategy[str] = st.builds(
    lambda a, b, i, j: a[: i % (len(a) + 1)] + b[j % (len(b) + 1) :],
    st.sampled_from(SOURCES), st.sampled_from(SOURCES), st.integers(0, 4000), st.integers(0, 4000),
)  # fmt: skip
soup: st.SearchStrategy[str] = st.lists(st.sampled_from(TOKENS), max_size=40).map(" ".join)
bodies: st.SearchStrategy[str] = soup.map(lambda tokens: corpus.body("return " + tokens))
noise: st.SearchStrategy[str] = st.text(max_size=300)
anything: st.SearchStrategy[object] = st.none() | st.integers() | st.binary(max_size=50) | st.floats()

untrusted: st.SearchStrategy[object] = st.one_of(
    programs, good_programs, mutants, mutants, crossed, soup, bodies, noise | anything
)
"""All of it."""

# --- what the interpreter does meanwhile ------------------------------------------------------------

_FORBIDDEN = (
    "exec",
    "open",
    "import",
    "socket.",
    "subprocess.",
    "os.",
    "shutil.",
    "ctypes.",
    "urllib.",
    "ftplib.",
)
_watching: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watching is not None and event.startswith(_FORBIDDEN):
        if event == "open" and arguments[0] == "":
            return  # the parser's search for the line of an error, in a file that cannot exist
        _watching.append(f"{event} {arguments!r}"[:150])


_hooked = False


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collects the audit events of files, processes, sockets, imports and executed code."""
    global _watching, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _watching = seen = []
    try:
        yield seen
    finally:
        _watching = None


def parsed(source: object) -> candidates.Program | candidates.CandidateError:
    """Stages 1 to 3, with the rejection as a value."""
    try:
        return candidates.parse(source)  # type: ignore[arg-type]
    except candidates.CandidateError as error:
        return error


def printed(program: candidates.Program) -> str | None:
    """The program as text; None where it is too large for the 4 kB of a candidate."""
    try:
        return program.canonical_source
    except candidates.GraphError as error:
        if "prints as" in str(error):
            return None
        raise
