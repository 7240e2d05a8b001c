"""The task `preferences`: pairs that there are already, prompts and a reward, of one's own or the hub's.

    rows -> pairs in tokens, by their prompts' hashes to train on or held out -> prompts to measure with

A prompt is written by one function, `data.chat`'s, for training as for evaluation. Rows that cannot be
used are counted and named; the task's facts say how many, and of what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from discojax.data import cache, chat
from discojax.data.pairs import Pairs, keep_end
from discojax.data.preferences import Preparation, Prepared, prepare, prompt_hash
from discojax.data.readers import provide
from discojax.data.sources import Account, Columns, Preference, Prompt, read_answered, read_preferences
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError
from discojax.tasks import building
from discojax.tasks.bases import Base
from discojax.tasks.judges import Judge
from discojax.tasks.own_rewards import counted, identify, judged, needs_answers, overlapping, own_reward
from discojax.tasks.types import OwnData, Prompts, Report, Reward, Task, TaskConfig

__all__ = ["SPLITS", "build", "check_rewards", "scorers", "shown", "with_marker"]

SPLITS = ("search", "select", "report")

_READ = 50_000  # rows of a source of prompts


def _packaged(builder: str) -> Path:
    from discojax.tasks import builders  # takes TFDS

    return builders.prepare(getattr(builders, builder))


for _name, _builder in (("docstrings", "Docstrings"), ("film_reviews", "FilmReviews")):
    provide(_name, partial(_packaged, _builder))


class Asked(NamedTuple):
    """A prompt to measure with, and what a person wrote to it, or "" if nobody did."""

    prompt: Prompt
    answer: str


def build(
    config: TaskConfig,
    *,
    base: Base | None = None,
    given: Mapping[str, Reward | Judge] | None = None,
    name: str = "preferences",
    root: Path | str | None = None,
    report: Report = lambda what, done, total: None,
) -> Task:
    """Builds the task of `config.own`.

    Args:
      config: see `TaskConfig`.
      base: a policy that is there already, in place of one that is trained here on what was chosen.
      given: what the names of its rewards mean, if that is known; see `scorers`.
      name: what the task is called.
      root: the cache's directory.
      report: told how the building goes.

    Raises:
      UserError: a source cannot be read, nothing in it can be used, or there is no reward.
    """
    own = config.own
    meant = scorers(own) if given is None else given
    account = Account()
    report("preference pairs", 0, 1)
    rows = _rows(config, account)
    training, asked = _divided(rows, own)
    tokens = base.tokenizer if base else building.tokenizer_of(
        [f"{row.prompt}{row.chosen}" for _, row in training if isinstance(row.prompt, str)], config, root
    )  # fmt: skip
    preparation = Preparation(
        1 + config.prompt_tokens + config.completion_tokens, config.completion_tokens,
        own.style, 1 + config.prompt_tokens,
    )  # fmt: skip
    prepared = prepare(rows, tokens, preparation, account)
    style = prepared.style
    report("preference pairs", 1, 1)
    kept, held = prepared.split(own.held_out)
    if not len(kept.prompts):
        raise UserError(f"{own.pairs} has no pair to train on, once those held out are: {account}.")
    base = base or _supervised(kept, tokens, config, root, report)

    left: dict[str, int] = {}
    left_out: list[str] = []
    if own.prompts:
        others = Account()
        asked["report"] = _sourced(own, others)
        left |= {"rows of prompts": others.read, "rows of prompts left out": others.left_out}
        left_out = list(others.named)
    used = set(Prompts(kept.pairs.chosen_ids, kept.pairs.prompt_length).rows())
    splits = {}
    for split in reversed(SPLITS):  # what reports goes first, so the others give up what they share
        openings = own.openings and split == "report" and bool(own.prompts)
        splits[split] = _encoded(asked[split], tokens, style, config, openings, used, left)
    known = {
        text: one for rows, asks in splits.values()
        for text, one in zip(tokens.decode_batch(rows), asks, strict=True)
    }  # fmt: skip
    counts: dict[str, int] = {}
    reward, rewards = _rewards(own, meant, known, counts)
    spare = _held_out(held, own, config.held_out_pairs)
    dropped = {what.replace("_", " "): count for what, count in prepared.counts.items() if count}
    said = f"{len(kept.prompts)} pairs to train on, {len(held.prompts)} held out; {account}"
    counted_out = [f"{n} {what}" for what, n in (dropped | left).items() if n]
    if left_out:
        counted_out.append(f"of prompts first {'; '.join(left_out)}")
    return building.finish(
        name, base, config,
        pairs=building.referred(kept.pairs, base, config, root=root, report=report),
        held_out=None if spare is None else building.referred(spare, base, config, root=root, report=report),
        prompts={
            split: Prompts.of(rows, 1 + config.prompt_tokens, tokens.pad_id)
            for split, (rows, _) in splits.items()
        },
        reward=reward,
        rewards=rewards,
        references={s: [one.answer for one in asks] for s, (_, asks) in splits.items() if _answered(asks)},
        texts={split: [shown(one.prompt) for one in asks] for split, (_, asks) in splits.items()},
        sampling=base.sampling(config, chat.end_of_completion(tokens, style)),
        given=[*kept.pairs[:5], rewards],
        facts={
            "data": ["; ".join([said, *counted_out])],
            "rows read": account.read,
            "rows left out": account.left_out,
            "named": [*account.named, *left_out],
            "in tokens": dropped,
            "prompts": left,
            "style": style,
            "rewards": {"search": own.reward, "report": own.report_reward or own.reward},
            "judged": counts,
        },
    )  # fmt: skip


def check_rewards(own: OwnData, *, search: bool = False) -> None:
    """That there are data and rewards, and for a search one that only searches and one that only reports.

    Raises:
      UserError: saying what to set.
    """
    if not own.pairs:
        raise UserError(
            "The task preferences takes pairs: set task.data to a file, an id on the hub or tfds:NAME."
        )
    kinds = "MODULE:FUNCTION, a classifier, rouge or judge:SERVER:MODEL"
    if not own.reward and not own.report_reward:
        raise UserError(
            f"The task preferences takes a reward: set evaluation.reward (or task.reward) to {kinds}."
        )
    if search and (not own.reward or not own.report_reward or own.reward == own.report_reward):
        raise UserError(
            "A search takes two rewards: task.reward, which it is scored by, and another in "
            f"evaluation.reward, which reports; each is {kinds}."
        )


def scorers(own: OwnData, judge: Callable[[str], Judge | None] | None = None) -> dict[str, Reward | Judge]:
    """What the rewards' names mean, but for `rouge`. It takes no data, so that a mistake is told at once.

    Args:
      own: the names.
      judge: makes the judge of `judge:SERVER:MODEL` from what follows `judge:`, and asks whether it is there.

    Raises:
      UserError: there is no such reward, or no such judge or no key to it.
    """
    check_rewards(own)
    found: dict[str, Reward | Judge] = {}
    for name in {own.reward, own.report_reward} - {"", "rouge"}:
        if not name.startswith("judge:"):
            found[name] = own_reward(name)
            continue
        made = judge(name.removeprefix("judge:")) if judge else None
        if made is None:
            raise UserError(f"The reward {name} is no judge that can be asked: write judge:SERVER:MODEL.")
        found[name] = made
    return found


def with_marker(preference: Preference, marker: str) -> Preference:
    r"""The preference with `marker` at its prompt's end, once, and at the beginning of neither completion.

    >>> with_marker(Preference("A post.\nTL;DR:", " Short.", "TL;DR: Long."), "\n\nTL;DR:")
    Preference(prompt='A post.\n\nTL;DR:', chosen=' Short.', rejected=' Long.')
    """
    word = marker.strip()
    if not word or not isinstance(preference.prompt, str):
        return preference
    sides = (f" {side.strip().removeprefix(word).strip()}" for side in preference[1:])
    return Preference(_marked(preference.prompt, marker), *sides)


def _marked(prompt: str, marker: str) -> str:
    return prompt.rstrip().removesuffix(marker.strip()).rstrip() + marker if marker.strip() else prompt


def shown(prompt: Prompt) -> str:
    """A prompt in words, as rewards and judges are shown it."""
    if isinstance(prompt, str):
        return prompt
    return prompt[0].content if len(prompt) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in prompt)


def _rows(config: TaskConfig, account: Account) -> list[tuple[str, Preference]]:
    own = config.own
    rows = read_preferences(own.pairs, account, split=own.split, columns=Columns(*own.columns))
    return [(where, with_marker(row, own.marker)) for where, row in islice(rows, config.pairs)]


def _divided(
    rows: Iterable[tuple[str, Preference]], own: OwnData
) -> tuple[list[tuple[str, Preference]], dict[str, list[Asked]]]:
    """The rows to train on, and the prompts of the others by split, in the order of their hashes.

    With prompts of another source the report has those, and these search and select alone.
    """
    training: list[tuple[str, Preference]] = []
    found: dict[float, Asked] = {}
    for where, row in rows:
        point = prompt_hash(row.prompt) / 2.0**64
        if point >= own.held_out:
            training.append((where, row))
        else:
            found.setdefault(point / own.held_out, Asked(row.prompt, row.chosen.strip()))
    ends = (0.5, 1.0, 1.0) if own.prompts else (0.25, 0.5, 1.0)
    asked: dict[str, list[Asked]] = {split: [] for split in SPLITS}
    for point in sorted(found):
        split = next(split for split, end in zip(SPLITS, ends, strict=True) if point < end)
        asked[split].append(found[point])
    return training, asked


def _sourced(own: OwnData, account: Account) -> list[Asked]:
    """The prompts of the source of prompts, none twice, in the order of their hashes."""
    rows = read_answered(own.prompts, account, split=own.prompts_split, columns=own.prompts_columns)
    found: dict[int, Asked] = {}
    for _, (prompt, answer) in islice(rows, _READ):
        text = _marked(prompt, own.marker) if isinstance(prompt, str) else prompt
        found.setdefault(prompt_hash(text), Asked(text, answer.strip()))
    return [found[key] for key in sorted(found)]


def _supervised(
    kept: Prepared, tokens: TextTokenizer, config: TaskConfig, root: Path | str | None, report: Report
) -> Base:
    """The small decoder, trained on prompts and what was chosen."""
    ids, lengths = kept.pairs.chosen_ids, kept.pairs.prompt_length + kept.pairs.chosen_length
    digest = cache.content_hash([ids, lengths])
    return building.supervised(digest, lambda: (ids, lengths), tokens, config, root=root, report=report)


def _encoded(
    asked: Sequence[Asked],
    tokens: TextTokenizer,
    style: chat.Style,
    config: TaskConfig,
    openings: bool,
    used: set[tuple[int, ...]],
    left: dict[str, int],
) -> tuple[list[tuple[int, ...]], list[Asked]]:
    """Prompts in tokens, none of them in `used`, to which they are added; `left` counts what was done."""
    generator = np.random.default_rng(config.seed)
    room, begin = 1 + config.prompt_tokens, chat.begins_with(tokens, style)

    def count(what: str) -> None:
        left[what] = left.get(what, 0) + 1

    rows, kept = [], []
    for one in asked:
        try:
            ids = chat.encode_prompt(tokens, one.prompt, style)
        except chat.TemplateError:
            count("prompts that the chat template refuses")
            continue
        if openings:
            size = int(generator.integers(2, config.prompt_tokens, endpoint=True)) + (begin is not None)
            if len(ids) <= size:
                count("texts too short for an opening")
                continue
            ids = ids[:size]
            one = one._replace(prompt=tokens.decode(ids))
        elif len(ids) > room:
            count("prompts shortened")
            ids = keep_end(ids, room, begin)
        if tuple(ids) in used:
            count("prompts that are in training or in another part")
            continue
        used.add(tuple(ids))
        rows.append(tuple(ids))
        kept.append(one)
    return rows, kept


def _answered(asks: Sequence[Asked]) -> bool:
    return bool(asks) and all(one.answer for one in asks)


def _held_out(held: Prepared, own: OwnData, count: int) -> Pairs | None:
    """At most `count` held-out pairs, of the prompts that report where the pairs' own do."""
    if not count:
        return None
    last = np.flatnonzero(held.prompts.astype(np.float64) >= 0.5 * own.held_out * 2.0**64)[:count]
    if not len(last):
        return None
    return Pairs(*(None if array is None else array[last] for array in held.pairs))  # type: ignore[arg-type]


def _rewards(
    own: OwnData,
    meant: Mapping[str, Reward | Judge],
    known: Mapping[str, Asked],
    counts: dict[str, int],
) -> tuple[dict[str, Reward], dict[str, str]]:
    """The reward of each split, and the hash of what scores each.

    With one reward for everything it only reports, and chooses; a search would need another.
    """
    answers = {shown(one.prompt): one.answer for one in known.values()}

    def made(name: str) -> Reward:
        if needs_answers(name) and not all(answers.values()):
            raise UserError(
                f"The reward {name} compares with what people wrote: name the column that has it as the "
                "second of task.prompts_columns."
            )
        found = meant.get(name)
        if found is None:
            score = overlapping(answers)
        else:
            score = counted(found, counts) if callable(found) else judged(found, answers, counts)

        def reward(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
            given = [shown(known[p].prompt) if p in known else p for p in prompts]
            if needs_answers(name) and not answers.keys() >= set(given):
                raise UserError(f"The reward {name} knows what people wrote to the task's own prompts alone.")
            return np.asarray(score(given, completions), np.float32)

        return reward

    first, last = own.reward or own.report_reward, own.report_reward or own.reward
    search = made(first)
    report = search if first == last else made(last)
    rewards = {"report": identify(last)}
    if own.reward and own.report_reward:
        rewards |= dict.fromkeys(("search", "select"), identify(first))
    return {"search": search, "select": search, "report": report}, rewards
