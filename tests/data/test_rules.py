"""The rules of tokenized pairs that trainers have got wrong, each over every kind of tokenizer."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from discojax.data import chat, pairs, preferences, sources
from discojax.data.sources import Message, Preference
from discojax.policies.decoder import Decoder, DecoderConfig
from discojax.policies.logprobs import completion_logps, completion_mask

TEXTS = [
    Preference("the film", " was funny and warm .", " was dull ."),
    Preference("a charming , funny ", "piece of work", "film"),
    Preference("it's what the movie wan", "ts to be", "ted"),
    Preference("what a mess\n", "of a film", "\n\nof characters"),
    Preference("a", " b", " c d e f"),
]


def prepared(tokenizer, rows=TEXTS, **options):
    account = sources.Account()
    numbered = [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    made = preferences.prepare(numbered, tokenizer, preferences.Preparation(**options), account)
    return made, account


def sides(made: pairs.Pairs, row: int):
    for ids, lengths in ((made.chosen_ids, made.chosen_length), (made.rejected_ids, made.rejected_length)):
        start, end = made.prompt_length[row], made.prompt_length[row] + lengths[row]
        yield ids[row, :start].tolist(), ids[row, start:end].tolist(), ids[row, end:].tolist()


def test_the_border_is_in_token_space(tokenizer):
    """The prompt of a pair is, id by id, what a sampler is given for it."""
    made, _ = prepared(tokenizer)
    for row, preference in enumerate(TEXTS):
        expected = chat.encode_prompt(tokenizer, preference.prompt, "plain")
        for prompt, _, _ in sides(made.pairs, row):
            assert prompt == expected


def test_tokens_that_would_merge_across_the_border_are_counted(tokenizer):
    made, _ = prepared(tokenizer)
    merged = 0
    for prompt, *completions in TEXTS:
        before = tokenizer.encode(prompt)
        for text in completions:
            merged += tokenizer.encode(prompt + text)[: len(before)] != before
    assert made.counts["merged"] == merged
    assert merged > 0 or tokenizer.name == "wordpiece"


@pytest.mark.parametrize("kind", ["ours", "gpt2", "smollm2", "unigram"])
def test_prompt_and_completion_read_as_the_text(kind, tokenizer_of):
    """Also where a border falls into a word, and where SentencePiece would put a space before it.

    WordPiece has no token for the rest of a word that stands alone: it counts such a border, no more.
    """
    tokenizer = tokenizer_of(kind)
    made, _ = prepared(tokenizer)
    for row, (prompt, *completions) in enumerate(TEXTS):
        for (before, ids, _), text in zip(sides(made.pairs, row), completions, strict=True):
            whole = tokenizer.decode(tokenizer.encode(prompt + text))
            assert tokenizer.decode([*before, *ids]) == whole


def test_no_bos_inside_a_completion_and_once_before_a_prompt(tokenizer):
    made, _ = prepared(tokenizer)
    for row in range(len(TEXTS)):
        for prompt, completion, _ in sides(made.pairs, row):
            if tokenizer.bos_id is not None:
                assert prompt[0] == tokenizer.bos_id
                assert tokenizer.bos_id not in [*prompt[1:], *completion]
            assert not tokenizer.special_ids & set(prompt[tokenizer.bos_id is not None :])


def test_eos_exactly_once_and_last(tokenizer):
    made, _ = prepared(tokenizer)
    for row in range(len(TEXTS)):
        for _, completion, _ in sides(made.pairs, row):
            assert completion.count(tokenizer.eos_id) == 1
            assert completion[-1] == tokenizer.eos_id


def test_a_special_token_spelt_out_in_a_text_is_text(tokenizer):
    spelt = tokenizer.tokenizer.id_to_token(tokenizer.eos_id)
    made, _ = prepared(tokenizer, [Preference(f"a {spelt}", f" so {spelt} ends", f" {spelt}")])
    for _, completion, _ in sides(made.pairs, 0):
        assert completion.count(tokenizer.eos_id) == 1 and len(completion) > 1


def test_masks_are_from_lengths_whatever_the_padding_is(tokenizer):
    made, _ = prepared(tokenizer)
    for ids, lengths in (
        (made.pairs.chosen_ids, made.pairs.chosen_length),
        (made.pairs.rejected_ids, made.pairs.rejected_length),
    ):
        last = (made.pairs.prompt_length + lengths - 1)[:, None]
        assert (np.take_along_axis(ids, last, 1) == tokenizer.eos_id).all()
        mask = np.asarray(completion_mask(lengths, ids.shape[1]))  # what log-probabilities are summed by
        np.testing.assert_array_equal(mask.sum(-1), lengths)
        ends = np.take_along_axis(mask, lengths[:, None] - 1, 1)
        assert ends.all(), "the end is learnt, even where it is the padding"


def test_truncation_keeps_the_prompts_end_and_empties_no_completion(tokenizer):
    long = Preference("a very long way round " * 30 + "to the film", " was worth it" * 30, " failed")
    made, _ = prepared(tokenizer, [long], max_length=16)
    whole = chat.encode_prompt(tokenizer, long.prompt, "plain")
    for prompt, completion, _ in sides(made.pairs, 0):
        begun = 0 if tokenizer.bos_id is None else 1
        assert prompt[:begun] == whole[:begun]
        assert prompt[begun:] == whole[len(whole) - len(prompt) + begun :]
        assert len(prompt) >= 4 and len(prompt) + len(completion) <= 16
        assert len(completion) > 1 and completion[-1] == tokenizer.eos_id
    assert made.counts["shortened_prompts"] == 1


def test_dropped_pairs_are_counted(tokenizer):
    rows = [TEXTS[0], Preference("x", " y", " y"), Preference("the film", " a" * 40, " a" * 41)]
    made, _ = prepared(tokenizer, rows, max_length=16)
    dropped = sum(
        made.counts[name] for name in ("empty_completion", "identical", "identical_after_truncation")
    )
    assert len(made.pairs.prompt_length) == 1 == len(made.prompts)
    assert dropped == 2


@pytest.fixture(scope="module")
def small():
    """Log-probabilities under a policy of any vocabulary; one compilation a shape."""
    made = {}

    def logps(tokenizer, ids, prompts, lengths, tokens):
        if tokenizer.name not in made:
            config = DecoderConfig(vocab_size=tokenizer.size, layers=1, width=16, heads=2, max_length=64)
            graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
            run = jax.jit(
                lambda p, *a, tokens: completion_logps(nnx.merge(graph, p), *a, tokens=tokens),
                static_argnames="tokens",
            )
            made[tokenizer.name] = lambda *a, tokens: run(params, *a, tokens=tokens)
        return np.asarray(made[tokenizer.name](ids, prompts, lengths, tokens=tokens))

    return logps


def test_log_probabilities_do_not_depend_on_the_amount_of_padding(tokenizer, small):
    made, _ = prepared(tokenizer)
    data = made.pairs
    tokens = int(data.chosen_length.max())
    wide = np.pad(data.chosen_ids, ((0, 0), (0, 9)), constant_values=tokenizer.pad_id)
    other = np.pad(data.chosen_ids, ((0, 0), (0, 9)), constant_values=tokenizer.size - 1)
    first = small(tokenizer, wide[:1], data.prompt_length[:1], data.chosen_length[:1], tokens)
    narrow = small(tokenizer, data.chosen_ids, data.prompt_length, data.chosen_length, tokens)
    for padded in (wide, other):
        got = small(tokenizer, padded, data.prompt_length, data.chosen_length, tokens + 5)
        np.testing.assert_allclose(got, narrow, atol=1e-4)
    np.testing.assert_allclose(first, narrow[:1], atol=1e-4)


@pytest.mark.parametrize("kind", ["smollm2", "unigram"])
def test_the_rules_hold_in_a_chat(kind, tokenizer_of):
    """One beginning, the template's; one end, the turn's; the prompt exactly what a sampler is given."""
    tokenizer = tokenizer_of(kind)
    first = (Message("user", "How was it?"),)
    later = (*first, Message("assistant", "What do you mean?"), Message("user", "The film."))
    rows = [
        Preference(first, "It was funny.", "Dull."),
        Preference(later, "Good", "Good but long"),
        Preference("Why?", "Because.", "Never mind."),
    ]
    made, account = prepared(tokenizer, rows)
    assert made.style == "chat" and account.left_out == 0
    begin, end = chat.begins_with(tokenizer, "chat"), chat.end_of_completion(tokenizer, "chat")
    for row, preference in enumerate(rows):
        for prompt, completion, _ in sides(made.pairs, row):
            assert prompt == chat.encode_prompt(tokenizer, preference.prompt, "chat")
            assert completion.count(end) == 1 and completion[-1] == end
            if begin is not None:
                assert prompt[0] == begin and begin not in [*prompt[1:], *completion]
