import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discojax.data import pairs, reviews
from discojax.errors import UserError

PAD, BOS, EOS = 0, 1, 2


def make(prompt, chosen, rejected, max_length=16, **options):
    return pairs.make_pairs([prompt], [chosen], [rejected], max_length=max_length, **options)


def row(made, side="chosen"):
    """Prompt and completion of the first pair, cut by lengths, and what is left of the row."""
    ids = getattr(made, f"{side}_ids")[0].tolist()
    start = int(made.prompt_length[0])
    end = start + int(getattr(made, f"{side}_length")[0])
    return ids[:start], ids[start:end], ids[end:]


@pytest.fixture(scope="module")
def trained(tokenizer_of):
    return tokenizer_of("ours")


def test_a_pair_is_laid_out_by_lengths():
    made, dropped = make([10, 11], [20, 21, 22], [30], max_length=8)
    np.testing.assert_array_equal(made.chosen_ids, [[BOS, 10, 11, 20, 21, 22, EOS, PAD]])
    np.testing.assert_array_equal(made.rejected_ids, [[BOS, 10, 11, 30, EOS, PAD, PAD, PAD]])
    assert (made.prompt_length, made.chosen_length, made.rejected_length) == ([3], [4], [2])
    assert {array.dtype for array in made[:5]} == {np.dtype(np.int32)}
    assert made.reference_chosen is None
    assert dropped.total == 0
    assert dropped.rows.tolist() == [0]


def test_bos_is_once_at_the_start_of_the_prompt():
    for prompt in ([10, 11], [BOS, 10, 11], [BOS, BOS, 10, 11]):
        made, _ = make(prompt, [20], [30])
        assert row(made)[0] == [BOS, 10, 11]


def test_what_separates_turns_inside_a_prompt_stays():
    made, _ = make([BOS, 10, BOS, 11], [20], [30])
    assert row(made)[0] == [BOS, 10, BOS, 11]


def test_bos_is_never_in_a_completion():
    made, _ = make([10], [BOS, 20, BOS, 21], [BOS, 30])
    assert row(made)[1] == [20, 21, EOS]
    assert row(made, "rejected")[1] == [30, EOS]


def test_eos_is_exactly_once_and_last():
    made, _ = make([10], [20, EOS], [30, EOS, 31, EOS, EOS])
    assert row(made)[1] == [20, EOS]
    assert row(made, "rejected")[1] == [30, EOS]


def test_a_sample_that_was_cut_off_is_not_made_to_end():
    made, _ = make([10], [20, 21], [30, EOS, 31], append_eos=False)
    assert row(made)[1] == [20, 21]
    assert row(made, "rejected")[1] == [30, EOS]
    made, _ = make([10], [20, 21, 22, EOS], [30], max_length=5, append_eos=False)
    assert row(made)[1] == [20, 21, 22]


def test_one_token_may_be_bos_eos_and_padding_as_in_gpt2():
    end = 99
    made, _ = make([end, 10, end, 11], [20, end], [30], max_length=8, bos_id=end, eos_id=end, pad_id=end)
    assert row(made)[0] == [end, 10, end, 11]
    assert row(made)[1] == [20, end]
    assert (made.chosen_length, made.rejected_length) == ([2], [2])
    assert made.prompt_length == [4]


def test_a_tokenizer_may_have_no_bos():
    made, dropped = make([10], [20], [30], bos_id=None)
    assert row(made)[0] == [10]
    made, dropped = make([], [20], [30], bos_id=None)
    assert (len(made.chosen_ids), dropped.empty_prompt) == (0, 1)
    made, dropped = make([], [20], [30])
    assert (row(made)[0], dropped.total) == ([BOS], 0)


def test_padding_is_never_told_by_its_id():
    """A token with the padding's id, in the text, is a token."""
    made, _ = make([10, PAD], [20, PAD], [PAD, 30], max_length=8)
    assert row(made)[:2] == ([BOS, 10, PAD], [20, PAD, EOS])
    assert (made.prompt_length, made.chosen_length) == ([3], [3])


def test_truncation_keeps_the_prompts_end():
    made, dropped = make(range(10, 30), [40, 41, 42], [50], max_length=12)
    assert row(made)[0] == [BOS, 23, 24, 25, 26, 27, 28, 29]
    assert row(made)[1] == [40, 41, 42, EOS]
    assert row(made, "rejected")[0] == row(made)[0]
    assert (dropped.shortened_prompts, dropped.shortened_completions) == (1, 0)


def test_truncation_never_empties_a_completion():
    made, dropped = make(range(10, 110), range(200, 300), [50], max_length=16)
    prompt, completion, rest = row(made)
    assert prompt == [BOS, 107, 108, 109]
    assert completion == [*range(200, 211), EOS]
    assert rest == []
    assert row(made, "rejected")[1] == [50, EOS]
    assert (dropped.shortened_prompts, dropped.shortened_completions) == (1, 1)


def test_completions_have_a_limit_of_their_own():
    made, dropped = make([10, 11], range(200, 300), [50], max_length=16, max_completion=5)
    assert row(made)[:2] == ([BOS, 10, 11], [200, 201, 202, 203, EOS])
    assert (dropped.shortened_prompts, dropped.shortened_completions) == (0, 1)


def test_dropped_pairs_are_counted_by_reason_and_rows_say_which_are_left():
    made, dropped = pairs.make_pairs(
        [[10]] * 7,
        [[20], [], [EOS, 20], [20, 21], [20] * 20 + [1], [20, EOS, 5], [60]],
        [[30], [30], [30], [20, 21, EOS], [20] * 20 + [7], [20, EOS, 6], [BOS, EOS]],
        max_length=10,
    )
    assert dropped.rows.tolist() == [0]
    assert len(made.chosen_ids) == 1
    assert (dropped.empty_completion, dropped.identical, dropped.identical_after_truncation) == (3, 2, 1)
    assert dropped.total == 6
    assert (dropped.shortened_prompts, dropped.shortened_completions) == (0, 0)


def test_no_pair_at_all_keeps_its_shape():
    made, dropped = pairs.make_pairs([], [], [], max_length=8)
    assert made.chosen_ids.shape == (0, 8)
    assert (made.prompt_length.shape, dropped.total) == ((0,), 0)


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="max_length is 3"):
        make([10], [20], [30], max_length=3)
    with pytest.raises(UserError, match="max_completion is 1"):
        make([10], [20], [30], max_completion=1)
    with pytest.raises(ValueError):
        pairs.make_pairs([[10]], [[20], [21]], [[30]], max_length=8)


tokens = st.lists(st.integers(0, 12), max_size=14)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(tokens, tokens, tokens), max_size=4),
    st.integers(4, 20),
    st.none() | st.integers(2, 8),
    st.sampled_from([(PAD, BOS, EOS), (EOS, EOS, EOS), (EOS, BOS, EOS), (PAD, None, EOS)]),
    st.booleans(),
)
def test_every_pair_of_any_rows_keeps_the_rules(table, max_length, max_completion, ids, append_eos):
    pad, bos, eos = ids
    columns = list(zip(*table, strict=True)) or [(), (), ()]
    made, dropped = pairs.make_pairs(
        *columns,
        max_length=max_length,
        max_completion=max_completion,
        pad_id=pad,
        bos_id=bos,
        eos_id=eos,
        append_eos=append_eos,
    )
    assert len(made.chosen_ids) + dropped.total == len(table)
    assert len(dropped.rows) == len(made.chosen_ids)
    for i, source in enumerate(dropped.rows):
        one = pairs.Pairs(*(array[i : i + 1] for array in made[:5]))
        prompt = row(one)[0]
        assert prompt
        if bos is not None:
            assert prompt[0] == bos
        kept = prompt if bos is None else prompt[1:]
        given_prompt = table[source][0]
        assert given_prompt[len(given_prompt) - len(kept) :] == kept
        sides = []
        for side in ("chosen", "rejected"):
            again, completion, rest = row(one, side)
            assert again == prompt
            assert set(rest) <= {pad}
            assert len(again) + len(completion) + len(rest) == max_length
            assert len(completion) <= (max_completion or max_length)
            assert completion[0] != eos
            assert completion[:-1].count(eos) == 0
            assert completion[-1] == eos or not append_eos
            assert bos == eos or bos not in completion
            sides.append(completion)
        assert sides[0] != sides[1]


def test_pairs_are_a_pytree():
    made, _ = make([10], [20], [30])
    moved = jax.tree.map(jnp.asarray, made)
    assert isinstance(moved, pairs.Pairs)
    assert len(jax.tree.leaves(moved)) == 5
    with_reference = made._replace(reference_chosen=np.zeros(1), reference_rejected=np.zeros(1))
    assert len(jax.tree.leaves(with_reference)) == 7


def test_the_border_is_checked_in_token_space(trained):
    clear = pairs.tokenize_pair(trained, "the film", " was funny .")
    assert not clear.merged
    assert clear.prompt_ids == trained.encode("the film")
    assert clear.prompt_ids + clear.completion_ids == trained.encode("the film was funny .")

    for prompt, completion in (("the film ", "was funny ."), ("the fil", "m was")):
        merged = pairs.tokenize_pair(trained, prompt, completion)
        assert merged.merged
        assert merged.prompt_ids == trained.encode(prompt), "what a sampler would be given"
        assert merged.completion_ids == trained.encode(completion)
        assert merged.prompt_ids + merged.completion_ids != trained.encode(prompt + completion)


def test_real_text_survives_the_way_into_pairs_and_back(trained):
    texts = reviews.fold(reviews.load(), "rotten_tomatoes", "prompts_search").texts[:50]
    split = [pairs.tokenize_pair(trained, text[:20], text[20:]) for text in texts if len(text) > 60]
    assert any(pair.merged for pair in split)
    made, dropped = pairs.make_pairs(
        [pair.prompt_ids for pair in split],
        [pair.completion_ids for pair in split],
        [pair.completion_ids[::-1] for pair in split],
        max_length=256,
    )
    assert dropped.total == 0
    for i, text in enumerate(text for text in texts if len(text) > 60):
        end = made.prompt_length[i] + made.chosen_length[i]
        assert trained.decode(made.chosen_ids[i, :end]) == text.lower()
