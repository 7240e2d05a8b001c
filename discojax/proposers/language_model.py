"""The proposer that asks a language model: prompt, reply, gate, and one chance to mend what it refused.

    bandit -> operator, model -> parents -> prompt -> ledger or server -> replies -> gate -> repair

What is asked is a function of the history and the seed, and the ledger has every answer that was paid
for. So a run that is resumed asks the same, is answered from the ledger, and proposes the same.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from discojax import candidates
from discojax.config import Proposer
from discojax.errors import UserError
from discojax.proposers import bandit, parents, prompt, replies, selection
from discojax.proposers.client import ClientError, Request, Turn, request_hash
from discojax.proposers.paying import MOST_TOKENS, BudgetEndError, Purse
from discojax.proposers.replies import Draft, Untidy
from discojax.proposers.retry import Retrying, together
from discojax.proposers.types import Exchange, Proposal, Purpose, Scored, Status

__all__ = ["LanguageModel"]

_LONGEST_THOUGHT = 400


@dataclass
class _Session:
    """What this process remembers; nothing that is proposed depends on it.

    Attributes:
      failures: requests in a row that gave no candidate.
      why: why nothing was proposed, if so.
    """

    failures: int = 0
    why: str = ""


@dataclass(frozen=True)
class LanguageModel:
    """Proposes what language models write.

    Attributes:
      clients: one for each model; a bandit shares the requests among them.
      settings: of the config's section `proposer`.
      purse: what pays for requests, and keeps their answers.
      confidence: of the intervals that the history has.
    """

    clients: tuple[Retrying, ...]
    settings: Proposer
    purse: Purse = field(repr=False)
    confidence: float = 0.95
    session: _Session = field(default_factory=_Session, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What archives and reports call it."""
        return self.clients[0].name

    @property
    def why(self) -> str:
        """Why the last call gave fewer than it was asked for, as a clause; "" if it did not."""
        return self.session.why

    def propose(self, history: Sequence[Scored], count: int, seed: int) -> list[Proposal]:
        """Candidates that the models wrote, as many requests as it takes; fewer if the budget ends.

        A request that gave no candidate is a proposal too, `unanswered`. Up to `settings.concurrency`
        requests are under way at once, each told what was there before them all; what is proposed, and in
        which order, does not depend on which is answered first.

        Raises:
          ClientError: if no request has a chance, as with a wrong key.
          UserError: if too many requests in a row gave nothing.
        """
        rng = random.Random(f"{seed} {len(history)}")
        past = list(history) if self.settings.history else []
        taken = {one.name for one in history}
        proposals: list[Proposal] = []
        self.session.why = ""
        while len(proposals) < count:
            shares = self._shares(count - len(proposals))
            rngs = [random.Random(rng.getrandbits(64)) for _ in shares] if len(shares) > 1 else [rng]
            told, names = tuple(past), frozenset(taken)
            rounds = [
                functools.partial(self._round, told, share, own, names)
                for share, own in zip(shares, rngs, strict=True)
            ]
            for one in together(rounds):
                try:
                    made = [replace(p, name=_unique(p.name, taken)) for p in one.result()]
                except BudgetEndError as end:
                    self.session.why = str(end)
                    continue
                self._count(made)
                proposals += made
                taken.update(p.name for p in made)
                if self.settings.history:
                    past += [_as_past(p) for p in made]
            if self.session.why:
                break
        return proposals

    def _shares(self, wanted: int) -> list[int]:
        """The candidates of each of the requests that go out together."""
        most = self.settings.candidates
        shares = [min(most, wanted - asked) for asked in range(0, wanted, most)]
        return shares[: self.settings.concurrency]

    def stop(self) -> None:
        """From another thread: no client waits any longer, and what is still to be asked is an error."""
        for client in self.clients:
            client.stop()

    def _count(self, made: Sequence[Proposal]) -> None:
        if not all(one.unanswered for one in made):
            self.session.failures = 0
            return
        self.session.failures += 1
        if self.session.failures >= self.settings.failures:
            raise UserError(
                f"{self.session.failures} requests in a row gave no candidate, the last because: "
                f"{made[-1].unanswered.rstrip('.')}. What was found is saved; look into the run's "
                "transcripts/, change proposer.models or raise proposer.output_tokens, then resume."
            )

    def _round(
        self, past: Sequence[Scored], wanted: int, rng: random.Random, taken: Iterable[str]
    ) -> list[Proposal]:
        """One question, with what belongs to it: more tokens if they were too few, one repair."""
        operator = bandit.choose(parents.possible(past), bandit.gains(past, "operator"), rng)
        models = tuple(client.model for client in self.clients)
        client = self.clients[models.index(bandit.choose(models, bandit.gains(past, "model"), rng))]
        chosen = parents.draw(past, operator, rng)
        asked = prompt.build(
            past, operator, chosen, wanted,
            tokens=self.settings.prompt_tokens, confidence=self.confidence,
        )  # fmt: skip
        request = Request(
            asked.system,
            (Turn("user", asked.user),),
            temperature=self.settings.temperature,
            max_output_tokens=self.settings.output_tokens,
            seed=rng.getrandbits(31),
            schema=replies.schema(several=wanted > 1),
            timeout=self.settings.timeout,
        )
        turn = _Conversation(self, client, request, wanted)
        try:
            written = turn.ask()
        except ClientError as error:
            if error.final:
                raise
            written = Untidy(str(error), "ask_again")
        base = turn.paid_for(
            Proposal(
                name="",
                source="",
                operator=operator,
                parents=tuple(one.name for one in chosen),
                thought="",
                model=client.model,
                request=request_hash(client, request),
                prompt_hash=prompt.version(),
            )
        )
        if isinstance(written, Untidy):
            name = _unique(f"unanswered_{base.request[:8]}" if base.request else "unanswered", taken)
            return [replace(base, name=name, unanswered=written.reason)]
        names = set(taken)
        made: list[Proposal] = []
        for number, (draft, text, repaired) in enumerate(written[:wanted]):
            name = _unique(draft.name, names)
            names.add(name)
            made.append(
                replace(
                    base if number == 0 else replace(base, tokens_in=0, tokens_out=0, cost=0.0),
                    name=name,
                    source=draft.code,
                    operator=operator + (bandit.REPAIRED if repaired else ""),
                    thought=draft.thought[:_LONGEST_THOUGHT],
                    raw_reply=text,
                )
            )
        return made


Written = tuple[Draft, str, bool]
"""A draft, the text of the reply it stood in, and whether it is a repaired one."""


@dataclass
class _Conversation:
    """A question and what follows from its answer; `exchanges` is what was paid for."""

    proposer: LanguageModel
    client: Retrying
    request: Request
    wanted: int
    exchanges: list[Exchange] = field(default_factory=list)

    def ask(self) -> list[Written] | Untidy:
        """The candidates, mended if the gate refused them and the model could; or why there is none.

        Raises:
          ClientError: if no answer came to the question itself.
          BudgetEndError: if it was not asked.
        """
        text, read = self._read(self._send(self.request, "propose"))
        if isinstance(read, Untidy) and read.remedy == "more_tokens":
            more = min(2 * (self.request.max_output_tokens or MOST_TOKENS), MOST_TOKENS)
            again = self._follow_up(replace(self.request, max_output_tokens=more), "more_tokens")
            text, read = self._read(again) if again else (text, read)
        if isinstance(read, Untidy):
            if read.remedy != "repair":
                return read
            answer = self._repair(text, prompt.unread(read.reason, self.wanted))
            return read if isinstance(answer, Untidy) else [(d, t, True) for d, t in answer]
        checked = [(draft, candidates.check(draft.code)) for draft in read[: self.wanted]]
        written = [(draft, text, False) for draft, _ in checked]
        refused = [n for n, (_, result) in enumerate(checked) if not result.accepted]
        if refused:
            reasons = [(checked[n][0].name, str(checked[n][1].error)) for n in refused]
            answer = self._repair(text, prompt.repair(reasons))
            if not isinstance(answer, Untidy):
                for n, (draft, reply) in _matched(refused, [draft for draft, _ in checked], answer):
                    written[n] = (replace(draft, name=written[n][0].name), reply, True)
        return written

    def _repair(self, text: str, message: str) -> list[tuple[Draft, str]] | Untidy:
        turns = (
            *self.request.turns,
            Turn("model", replies.without_thoughts(text).strip()),
            Turn("user", message),
        )
        exchange = self._follow_up(replace(self.request, turns=turns), "repair")
        if exchange is None:
            return Untidy("The repair was not answered.", "ask_again")
        reply, read = self._read(exchange)
        return read if isinstance(read, Untidy) else [(draft, reply) for draft in read]

    def _follow_up(self, request: Request, purpose: Purpose) -> Exchange | None:
        """An answer that the round can do without: None if it fails or the budget does not cover it."""
        try:
            return self._send(request, purpose)
        except BudgetEndError:
            return None
        except ClientError as error:
            if error.final:
                raise
            return None

    def _read(self, exchange: Exchange) -> tuple[str, tuple[Draft, ...] | Untidy]:
        reply = exchange.reply
        return reply.texts[0], replies.read(reply.texts[0], reply.finishes[0], reply.detail)

    def _send(self, request: Request, purpose: Purpose) -> Exchange:
        exchange = self.proposer.purse.answered(self.client, request, purpose)
        self.exchanges.append(exchange)
        return exchange

    def paid_for(self, proposal: Proposal) -> Proposal:
        """With what the exchanges say and cost, together."""
        if not self.exchanges:
            return proposal
        costs = [exchange.cost for exchange in self.exchanges]
        known = [cost for cost in costs if cost is not None]
        last = self.exchanges[-1].reply
        return replace(
            proposal,
            model_version=last.model_version,
            raw_reply=last.texts[0],
            tokens_in=sum(exchange.reply.tokens_in for exchange in self.exchanges),
            tokens_out=sum(exchange.reply.tokens_out for exchange in self.exchanges),
            cost=sum(known) if len(known) == len(costs) else None,
        )


def _matched(
    refused: Sequence[int], drafts: Sequence[Draft], answer: Sequence[tuple[Draft, str]]
) -> list[tuple[int, tuple[Draft, str]]]:
    """Which repaired draft stands for which refused one: by order if there is one for each, else by name."""
    if len(answer) == len(refused):
        return list(zip(refused, answer, strict=True))
    named = {draft.name: (draft, text) for draft, text in answer}
    return [(n, named[drafts[n].name]) for n in refused if drafts[n].name in named]


def _as_past(proposal: Proposal) -> Scored:
    """How the next request of the same call sees it."""
    status: Status = "unanswered" if proposal.unanswered else "pending"
    if status == "pending" and selection.read(proposal.source) is None:
        status = "rejected"
    return Scored(
        proposal.name, proposal.source, status, reason=proposal.unanswered, parents=proposal.parents,
        operator=proposal.operator, model=proposal.model,
    )  # fmt: skip


def _unique(base: str, taken: Iterable[str]) -> str:
    taken = set(taken)
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name
