"""Reasons a model can act on: the line at fault, and what to write instead."""

from __future__ import annotations

import pickle

import corpus
import pytest

from discojax import candidates
from discojax.candidates import CandidateError
from discojax.errors import UserError


def reason(text: str) -> CandidateError:
    with pytest.raises(CandidateError) as error:
        candidates.parse(corpus.body(text))
    return error.value


@pytest.mark.parametrize(
    ("text", "stage", "line", "words"),
    [
        ("return F.logsigmoids(x)", "syntax", 4, "F.logsigmoid"),
        ("return jnp.softplus(x)", "syntax", 4, "jax.nn.softplus"),
        ("return torch.logsigmoid(x)", "syntax", 4, "jax.nn.log_sigmoid"),
        ("return jnp.clamp(x, 0, 1)", "syntax", 4, "jnp.clip"),
        ("y = x\nreturn y if x > 0 else x", "syntax", 5, "jnp.where"),
        ("for i in x:\n    pass\nreturn x", "syntax", 4, "whole batch"),
        ("return x[0]", "syntax", 4, "jnp.mean"),
        ("return x / x.shape[0]", "syntax", 4, "indexing"),
        ("return x / x.size", "syntax", 4, "jnp.mean"),
        ("return x ^ 2", "syntax", 4, "`**`"),
        ("return x @ x", "syntax", 4, "jnp.sum"),
        ("return -x, x", "syntax", 4, "losses alone"),
        ("return jax.random.normal(x)", "syntax", 4, "deterministic"),
        ("return jnp.stack([x, x])", "syntax", 4, "[batch]"),
        ("return jax.pure_callback(x)", "syntax", 4, "only computes"),
        ("return x * 1e300", "syntax", 4, "1e-30"),
        ("\n\nreturn logit", "program", 6, "assigned"),
        ("return rhoo", "program", 4, "'rho'"),
        ("return chosen_lengths * x", "program", 4, "parameters"),
        ("return jnp.mean(x, axis=1)", "program", 4, "axis"),
        ("return jnp.max(1 - x, x)", "program", 4, "jnp.maximum"),
        ("return -F.logsigmoid(x) * jnp.exp(-x) / x.std()", "program", 4, "ddof=1"),
        ("return (x > 0) & rho", "program", 4, "parentheses"),
        ("return x > 0", "program", 4, "comparison"),
        ("return beta * 1", "program", 4, "policy"),
        ("return torch.median(x)", "syntax", 4, "jnp.median"),
        ("return jnp.std(beta) * x", "program", 4, "same for all pairs"),
        ("return jnp.clip(x, low=0)", "program", 4, "min, max"),
    ],
)
def test_the_reason_names_the_remedy(text: str, stage: str, line: int, words: str) -> None:
    error = reason(text)
    assert (error.stage, error.line) == (stage, line)
    assert words in error.reason


def test_misnamed_parameters_get_the_nearest_name() -> None:
    with pytest.raises(CandidateError, match="'policy_chosen_logps'"):
        candidates.parse("def loss(policy_choosen_logps): return -policy_choosen_logps")


def test_lines_count_from_the_text_as_sent() -> None:
    with pytest.raises(CandidateError) as error:
        candidates.parse("\n\n    def loss(policy_chosen_logps):\n        return open(policy_chosen_logps)\n")
    assert error.value.line == 4


def test_long_words_of_the_author_do_not_crowd_out_the_reason() -> None:
    error = reason(f"return {'a' * 59}.{'b' * 900}(x)")
    assert len(str(error)) < 300
    error = reason(f"return jnp.{'b' * 900}(x)")
    assert "not in the language" in error.reason


def test_the_error_is_for_users_and_travels() -> None:
    error = reason("return x[0]")
    assert isinstance(error, UserError)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.stage, copy.line, copy.reason) == (error.stage, error.line, error.reason)
    assert str(copy) == str(error) == f"syntax, line 4: {error.reason}"


def test_reasons_are_cut_to_length() -> None:
    assert len(str(CandidateError("numbers", 100, "x" * 1000))) < 300
