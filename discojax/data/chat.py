"""How a prompt is written for a policy: the one place for training, evaluation and sampling alike.

A policy that was trained on plain text is given plain text; one that was tuned on chats is given
its tokenizer's own chat template, with the header of the reply at its end. A policy trained in
one form and measured in the other is measured wrong, so nothing else formats prompts.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from datetime import date
from typing import Any, Literal, NamedTuple

from discojax.data.pairs import tokenize_pair
from discojax.data.sources import Message, Preference, Prompt
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError

__all__ = [
    "Style",
    "TemplateError",
    "Tokens",
    "begins_with",
    "choose_style",
    "encode_preference",
    "encode_prompt",
    "end_of_completion",
    "format_prompt",
]

Style = Literal["plain", "chat"]

_REPLY = "The reply."  # stands for a reply where only what a template writes around it matters

_TODAY = date(2024, 7, 26)  # what Llama 3.2's template says where it is not told the date
_DIRECTIVES = {f"%{letter}": _TODAY.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSyY"}
# In the place of Transformers' function of that name, which asks the clock: a run that goes on after
# midnight would have other prompts. Transformers passes no function on, so it is one of the template's own.
_DATED = (
    "{% macro strftime_now(format) %}{% set said = namespace(text=format) %}"
    "{% for directive, text in _directives.items() %}"
    "{% set said.text = said.text.replace(directive, text) %}"
    "{% endfor %}{{ said.text }}{% endmacro %}\n"
)


class TemplateError(Exception):
    """A row that the chat template refuses, or that has a token which it or the policy must not see.

    It is to be left out.
    """


class Tokens(NamedTuple):
    """A preference in tokens: a prompt as a sampler gets it, and two completions without their end.

    Attributes:
      merged: how many of the two had a border that BPE would have merged across.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    merged: int


def choose_style(wanted: Literal["auto", "plain", "chat"], tokenizer: TextTokenizer, prompt: Prompt) -> Style:
    """The style to use for data that begins with `prompt`: `auto` writes messages as a chat, text plainly.

    Raises:
      UserError: a chat is needed and the tokenizer has no template, or messages are to be plain text.
    """
    messages = not isinstance(prompt, str)
    style: Style = ("chat" if messages else "plain") if wanted == "auto" else wanted
    if style == "chat" and tokenizer.chat_template is None:
        what = "The data are chat messages" if messages else "The style is chat"
        raise UserError(
            f"{what}, but the tokenizer {tokenizer.name} has no chat template: take an instruction-tuned "
            "policy, or data of plain text."
        )
    if style == "plain" and messages:
        raise UserError("The data are chat messages, which plain text has no form for: use the style chat.")
    return style


def format_prompt(tokenizer: TextTokenizer, prompt: Prompt, style: Style) -> str:
    """The text that a policy is given, up to where its completion begins.

    A chat has the header of the assistant's reply at its end; a plain string in a chat is what the
    user said. The token that begins a sequence is in it only if the template writes it. Where the
    template writes today's date, it is 26 July 2024 on every day.

    Raises:
      TemplateError: the template refuses these messages.
      UserError: see `choose_style`.
    """
    if style == "plain":
        choose_style("plain", tokenizer, prompt)
        return str(prompt)
    return _render(tokenizer, _messages(tokenizer, prompt), reply_follows=True)


def encode_prompt(tokenizer: TextTokenizer, prompt: Prompt, style: Style) -> list[int]:
    """The ids that a policy is given for a prompt, with the token that begins a sequence, if any, once.

    Raises:
      TemplateError: the template refuses these messages, or the policy has no row for a token.
    """
    return _with_rows(tokenizer, _prompt_ids(tokenizer, prompt, style))


def encode_preference(tokenizer: TextTokenizer, preference: Preference, style: Style) -> Tokens:
    """A preference in tokens; the prompt is exactly `encode_prompt`'s.

    Raises:
      TemplateError: the template refuses these messages, or the policy has no row for a token.
    """
    markup = style == "chat"
    text = format_prompt(tokenizer, preference.prompt, style)
    sides = []
    for completion in (preference.chosen, preference.rejected):
        reply = _reply(tokenizer, preference.prompt, text, completion) if markup else completion
        sides.append(tokenize_pair(tokenizer, text, reply, markup=markup))
    return Tokens(
        _with_rows(tokenizer, _begun(tokenizer, sides[0].prompt_ids, style)),
        _with_rows(tokenizer, sides[0].completion_ids),
        _with_rows(tokenizer, sides[1].completion_ids),
        sum(side.merged for side in sides),
    )


def begins_with(tokenizer: TextTokenizer, style: Style) -> int | None:
    """The id that begins every sequence of this style, for truncation to keep; None if there is none."""
    if style == "plain" or tokenizer.chat_template is None:
        return tokenizer.bos_id
    bos = tokenizer.special_tokens.get("bos_token")
    number = None if bos is None else tokenizer.tokenizer.token_to_id(bos)
    # A template may begin each turn, not each sequence, with that token (SmolLM2's does): no begin then.
    return number if number is not None and _template_ids(tokenizer).count(number) == 1 else None


def end_of_completion(tokenizer: TextTokenizer, style: Style) -> int:
    """The id that ends a completion: of a plain text the tokenizer's, of a chat what ends a turn."""
    if style == "plain":
        return tokenizer.eos_id
    turns = (Message("user", "The question."), Message("assistant", _REPLY))
    after = _render(tokenizer, turns).rpartition(_REPLY)[2]
    ids = tokenizer.encode(after, markup=True)
    return next((i for i in ids if i in tokenizer.special_ids), tokenizer.eos_id)


def _prompt_ids(tokenizer: TextTokenizer, prompt: Prompt, style: Style) -> list[int]:
    ids = tokenizer.encode(format_prompt(tokenizer, prompt, style), markup=style == "chat")
    return _begun(tokenizer, ids, style)


def _with_rows(tokenizer: TextTokenizer, ids: list[int]) -> list[int]:
    if token := tokenizer.without_row(ids):
        raise TemplateError(f"the policy has no embedding of the token {token}")
    return ids


def _begun(tokenizer: TextTokenizer, ids: list[int], style: Style) -> list[int]:
    # A chat is as its template wrote it, as Transformers has it: a second beginning would be one too many.
    return ids if style == "chat" or tokenizer.bos_id is None else [tokenizer.bos_id, *ids]


def _messages(tokenizer: TextTokenizer, prompt: Prompt) -> tuple[Message, ...]:
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    for message in messages:
        _refuse_markup(tokenizer, message.content)
    return messages


def _refuse_markup(tokenizer: TextTokenizer, text: str) -> None:
    if token := tokenizer.spelt_out(text):
        raise TemplateError(f"text spells out the special token {token}")


def _reply(tokenizer: TextTokenizer, prompt: Prompt, formatted: str, completion: str) -> str:
    """A reply as the template writes it, with what ends its turn."""
    _refuse_markup(tokenizer, completion)
    whole = _render(tokenizer, (*_messages(tokenizer, prompt), Message("assistant", completion)))
    # Some templates write a past turn otherwise than one that is being written; a reply is then as it is.
    return whole[len(formatted) :] if whole.startswith(formatted) else completion


@functools.lru_cache(maxsize=16)
def _template_ids(tokenizer: TextTokenizer) -> tuple[int, ...]:
    return tuple(_prompt_ids(tokenizer, "The question.", "chat"))


def _render(tokenizer: TextTokenizer, messages: Sequence[Message], *, reply_follows: bool = False) -> str:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it says that PyTorch is missing
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError:
        raise UserError("Chat templates take Transformers: run `pip install 'discojax[hub]'`.") from None
    chat: Any = [message._asdict() for message in messages]
    template = tokenizer.chat_template or ""
    if "strftime_now" in template:
        template = _DATED + template
    try:
        # In Jinja's sandbox: a template comes with the policy and is not to be trusted.
        rendered: Any = render_jinja_template(
            [chat],
            chat_template=template,
            add_generation_prompt=reply_follows,
            _directives=_DIRECTIVES,
            **dict[str, Any](tokenizer.special_tokens),
        )
    except ImportError as error:
        raise UserError(f"Chat templates take jinja2 ({error}): run `pip install 'discojax[hub]'`.") from None
    except Exception as error:  # a template raises what it likes, mostly of roles that it does not know
        raise TemplateError(f"the chat template says {str(error).splitlines()[0][:120]!r}") from error
    return str(rendered[0][0])
