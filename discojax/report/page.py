"""`report.html`: one file that shows a run, finished or not, in any browser and with no network.

Jinja writes the page and escapes whatever it is given; what the page's script needs travels as
compressed JSON, which it turns into text and never into markup. The one exception is MathML, which is
made here from programs and holds no text of a proposer's. The page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import gzip
import hashlib
import importlib.resources
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from discojax.config import Config, dump
from discojax.data import cache
from discojax.report import boards, controls, drawings, portraits
from discojax.report.entries import Entry, entries, stage
from discojax.report.facts import facts
from discojax.report.gather import Run, gather
from discojax.report.leaderboard import Row
from discojax.search.rungs import BASELINE, FINAL, REPORT, TRAIN

__all__ = ["FILE", "following", "render", "watch", "write"]

FILE = "report.html"
_HEADLINES = (FINAL, REPORT, TRAIN)  # the rungs whose numbers a run ends with
_EVERY = 10.0  # seconds between two reports of a run that is watched
_OFTEN = 60.0  # and of one that writes its own


def write(config: Config, *, say: Callable[[str], None] = lambda text: None) -> Path:
    """Writes the report of the run in `config.run.path`; returns where it is.

    Raises:
      UserError: there is no run, or its archive is damaged.
    """
    folder = config.run.path
    with _uncollected(), portraits.kept(folder) as gallery:
        html = render(gather(folder, config), gallery)
    cache.write_bytes(folder / FILE, html.encode())
    say(f"report: {folder / FILE}")
    return folder / FILE


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would go through a thousand programs again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def watch(config: Config, say: Callable[[str], None]) -> Path:
    """Writes the report again and again until the run's process has ended, and then once more."""
    while True:
        started = time.monotonic()
        file = write(config)
        if gather(config.run.path, config).state != "running":
            say(f"report: {file}")
            return file
        say(f"{file} is as of {time.strftime('%H:%M:%S')}; Ctrl-C ends this, not the run.")
        time.sleep(max(_EVERY, 10 * (time.monotonic() - started)))


@contextlib.contextmanager
def following(config: Config, *, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Writes the report now and then while the block runs, in a fiftieth of the time at most, and at its end.

    Whatever goes wrong with it while the block runs does not concern the run. The last one is begun when
    no other is being made, so that it is the one that stays.
    """
    done = threading.Event()

    def follow() -> None:
        pause = _OFTEN / 2
        while not done.wait(pause):
            started = time.monotonic()
            with contextlib.suppress(Exception):
                write(config)
            pause = max(_OFTEN, 50 * (time.monotonic() - started))

    thread = threading.Thread(target=follow, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    write(config, say=say)


@functools.cache
def vega() -> str:
    """The library that draws, as one script; made once for each of its versions and then cached."""
    import vl_convert

    made = f"{version('vl-convert-python')} {vl_convert.get_vega_version()}"
    file = cache.default_root() / "report" / f"vega-{cache.content_hash(made)[:16]}.js"
    if not file.is_file():
        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        file.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(file, script.encode())
    return file.read_text(encoding="utf-8")


def render(run: Run, gallery: portraits.Gallery) -> str:
    """The page, of a run and the portraits that there are of its programs."""
    import jinja2

    rounds = {}
    kept = run.results.get("objectives") or run.results.get("comparisons")
    for rung, evaluations in run.evaluations.items():
        only = kept.keys() if kept and rung in _HEADLINES else None
        if (
            found := boards.board(evaluations, run.config, only=only, coarse=rung not in _HEADLINES)
        ) is not None:
            rounds[rung] = found
    # A search's own rungs are below its elites'; what tunes or reports has none.
    searched = {rung: board for rung, board in rounds.items() if rung < min(_HEADLINES)}
    shown = searched or {rung: rounds[rung] for rung in _HEADLINES if rung in rounds}
    everyone = entries(run, shown, gallery)
    headline = _headline(rounds)
    drawn = drawings.draw(run, headline, everyone, gallery)
    page = importlib.resources.files("discojax.report") / "page"
    script, style = ((page / name).read_text("utf-8") for name in ("report.js", "report.css"))
    blob = json.dumps(drawn.data, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["signed"] = lambda x: "" if x is None else f"{x:+.3f}"
    environment.filters["plain"] = lambda x: "" if x is None else f"{x:.3f}"
    template = environment.from_string((page / "report.html.jinja").read_text("utf-8"))
    return template.render(
        run=run,
        version=version("discojax"),
        baseline=BASELINE,
        config_text=dump(run.config),
        facts=facts(run, headline),
        headline=headline,
        headline_name=stage(run, headline.rung) if headline else "",
        verdict=_verdict(run, headline, everyone),
        places={entry.name: i for i, entry in enumerate(everyone)},
        entries=everyone,
        statuses=sorted({entry.status for entry in everyone}),
        hows=sorted({entry.how for entry in everyone}),
        best=drawn.best,
        controls=controls.read(run.results),
        control_headings=controls.headings(BASELINE),
        control_cells=lambda control: controls.cells(control, run.config.evaluation.confidence),
        charts=drawn.charts,
        betas=drawn.betas,
        beta=drawn.beta,
        densities=bool(run.densities),
        now=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        data=base64.b64encode(gzip.compress(blob, 6, mtime=0)).decode(),
        style=jinja2.utils.markupsafe.Markup(style),
        vega=_script(vega()),
        script=_script(script),
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (vega(), script)),
    )


def _headline(rounds: Mapping[int, boards.Board]) -> boards.Board | None:
    """The round that counts most of those that compare anything yet."""
    order = [rung for rung in _HEADLINES if rung in rounds]
    order += sorted(rounds.keys() - set(_HEADLINES), reverse=True)
    return next(
        (rounds[rung] for rung in order if len(rounds[rung].rows) > 1), rounds[order[0]] if order else None
    )


def _script(text: str) -> Any:
    """Our own text, not a proposer's; nothing in it may end the element that it stands in."""
    import markupsafe

    assert "</script" not in text.lower() and "<!--" not in text
    return markupsafe.Markup(text)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _verdict(run: Run, headline: boards.Board | None, everyone: Sequence[Entry]) -> str:
    """What came out, in a sentence."""
    if headline is None or not headline.comparisons:
        return {
            "running": "Nothing is measured yet.",
            "stopped": f"The run ended before {BASELINE} and anything to compare it with were measured.",
            "finished": "Nothing was measured.",
        }[run.state]
    proposed = {entry.name for entry in everyone if entry.proposed}
    rows: Mapping[str, Row] = {row.name: row for row in headline.rows if row.name != BASELINE}
    ours = [row for row in rows.values() if row.name in proposed] or list(rows.values())
    better = [row for row in ours if row.verdict == "better"]
    where = f"{headline.task}, {stage(run, headline.rung)}"
    if not ours:
        return f"Only {BASELINE} is measured on {where}."
    if not better:
        kind = "proposed objective" if ours[0].name in proposed else "objective"
        return f"No {kind} is shown better than {BASELINE} on {where}, over {len(headline.seeds)} seeds."
    first = better[0]
    return (
        f"{first.name} scores {first.difference:+.3f} "
        f"[{first.difference_low:+.3f}, {first.difference_high:+.3f}] "
        f"against {BASELINE} on {where}, over {len(headline.seeds)} seeds: better, after Holm's correction."
    )
