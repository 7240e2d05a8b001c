"""The ladder for untidy replies: a candidate, or a reason; never an exception."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from discojax.candidates import CandidateError, parse
from discojax.proposers.replies import Draft, Untidy, identifier, read, schema, without_thoughts

ARGUMENTS = (
    "policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta"
)
CODE = f'''def loss({ARGUMENTS}):
    """A loss."""
    margin = policy_chosen_logps - policy_rejected_logps
    return jnp.exp(-beta * margin)
'''
ONE = {"thought": "Push less.", "name": "Gentle Push", "code": CODE}
DRAFT = Draft("gentle_push", CODE, "Push less.")
NAMELESS = Draft("loss", CODE)


def one(text: str, finish: str = "stop") -> Draft:
    drafts = read(text, finish)
    assert isinstance(drafts, tuple), drafts
    assert len(drafts) == 1
    parse(drafts[0].code)  # the gate reads it
    return drafts[0]


def untidy(text: str, finish: str = "stop", detail: str = "") -> Untidy:
    result = read(text, finish, detail)
    assert isinstance(result, Untidy), result
    return result


def test_json() -> None:
    assert one(json.dumps(ONE)) == DRAFT
    assert one(f"\n {json.dumps(ONE, indent=2)}\n\n") == DRAFT
    assert one(json.dumps([ONE])) == DRAFT
    assert one(json.dumps({"candidates": [ONE]})) == DRAFT


def test_several_in_a_list() -> None:
    second = {**ONE, "name": "other"}
    for text in (json.dumps({"candidates": [ONE, second]}), f"{json.dumps(ONE)}\n{json.dumps(second)}"):
        drafts = read(text)
        assert isinstance(drafts, tuple)
        assert [draft.name for draft in drafts] == ["gentle_push", "other"]


def test_whole_candidates_of_a_list_that_was_cut_are_kept() -> None:
    text = json.dumps({"candidates": [ONE, {**ONE, "name": "other"}]})
    assert one(text[:-40], "length") == DRAFT


def test_json_among_prose() -> None:
    assert one(f"Here it is [as asked]: {json.dumps(ONE)} I hope {{you}} like it.") == DRAFT
    assert one(f"Sure!\n```json\n{json.dumps(ONE, indent=1)}\n```\nEnjoy.") == DRAFT


def test_json_with_raw_line_breaks() -> None:
    assert (
        one('{"thought": "Push\nless.", "name": "Gentle Push", "code": "' + CODE.replace('"', '\\"') + '"}')
        == DRAFT
    )


def test_a_fence_inside_the_code_of_json() -> None:
    assert one(json.dumps({**ONE, "code": f"```python\n{CODE}```"})) == DRAFT


@pytest.mark.parametrize("several", [False, True])
def test_json_with_trailing_commas(several: bool) -> None:
    one_object = json.dumps({**ONE, "thought": "Push less,} and [less,]."}, indent=1)[:-2] + ",\n}"
    text = f'{{"candidates": [{one_object}, ],}}' if several else one_object
    wanted = replace(DRAFT, thought="Push less,} and [less,].")  # what is in a string is no slip
    assert one(text) == wanted
    assert one(f"It's {{this}}:\n```json\n{text}\n```\nIt isn't [steep].") == wanted


def test_a_dictionary_as_python_writes_it() -> None:
    assert one(repr(ONE)) == DRAFT
    assert one(repr({"candidates": [ONE], "done": True, "next": None})) == DRAFT
    quoted = f"{{'name': 'Gentle Push', 'thought': \"Push less.\", 'code': '''{CODE}''',}}"
    assert one(f"It's smooth:\n```python\n{quoted}\n```\nIsn't it?") == DRAFT
    two = read(f"{ONE!r} and {dict(ONE, name='other')!r}")
    assert isinstance(two, tuple) and [draft.name for draft in two] == ["gentle_push", "other"]


@pytest.mark.parametrize("text", ["{'code': open('/etc/passwd').read()}", "{'code': 'def ' * 9}", "{[]: 1}"])
def test_what_python_would_have_to_run_is_not_read(text: str) -> None:
    assert "neither JSON nor a function" in untidy(text).reason


def test_code_as_a_list_of_its_lines() -> None:
    assert one(json.dumps({**ONE, "code": CODE.split("\n")})) == DRAFT
    assert one(json.dumps({**ONE, "code": CODE.splitlines(keepends=True)})) == DRAFT
    assert "not the text of a function" in untidy(json.dumps({**ONE, "code": [CODE, 7]})).reason


HELPER = "def slope(x):\n    return jnp.tanh(x)\n"
CALLING = CODE.replace("jnp.exp", "slope")
GAP = CODE.replace("def loss", "def gap")


@pytest.mark.parametrize(
    ("before", "code", "reason"),
    [
        (f"import jax.numpy as jnp\n\n{HELPER}\n\n", CALLING, "2 functions found"),
        (f"{GAP}\n\n", CALLING.replace("slope(", "gap("), "2 functions found"),
        ("slope = lambda x: jnp.tanh(x)\n\n", CALLING, "put everything inside the one function"),
    ],
    ids=["helper", "helper of the same arguments", "lambda"],
)
def test_a_loss_that_needs_more_goes_to_the_gate_whole(before: str, code: str, reason: str) -> None:
    drafts = read(f"Here:\n```python\n{before}{code}```\nIt's smooth.")
    assert isinstance(drafts, tuple) and [draft.code for draft in drafts] == [before + code]
    with pytest.raises(CandidateError, match=reason):
        parse(drafts[0].code)


def test_a_loss_in_prose_is_not_cut_off_its_helper() -> None:
    drafts = read(f"Here's a helper:\n\n{HELPER}\n\n{CALLING}\nIt's smooth, isn't it?")
    assert isinstance(drafts, tuple) and [draft.code for draft in drafts] == [f"{HELPER}\n\n{CALLING}"]
    below = f"{CALLING}\nslope = jnp.tanh\n"
    drafts = read(f"{below}\nIt's smooth, isn't it?")
    assert isinstance(drafts, tuple) and drafts[0].code in below


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{HELPER}\n\n", ""),
        ("from jax.nn import log_sigmoid\nimport functools\n\n", ""),
        ("beta = 0.1\n\n", "\nprint(loss(*values, beta))\n"),
        ("", f"\n\ndef other({ARGUMENTS}):\n    return beta * policy_chosen_logps\n"),
        ("", "\n\ndef test():\n    assert loss(1.0, 1.0, 1.0, 1.0, 1.0) == 1.0\n"),
    ],
    ids=["unused helper", "unknown imports", "a call", "another loss", "a test"],
)
def test_a_loss_that_needs_nothing_round_it_stands_alone(before: str, after: str) -> None:
    assert one(f"```python\n{before}{CODE}{after}```") == NAMELESS


def test_imports_that_decide_what_a_method_means_are_kept() -> None:
    code = CODE.replace("beta * margin", "beta * margin / margin.std()").replace("jnp.exp", "exp")
    spread = one(f"```python\nimport torch\n\n{code}\nprint(loss)\n```").code
    assert parse(spread).hash == parse(code.replace("margin.std()", "jnp.std(margin, ddof=1)")).hash


@pytest.mark.parametrize("language", ["python", "py", "Python", ""])
def test_python_in_a_fence(language: str) -> None:
    assert one(f"Sure, here it is:\n\n```{language}\n{CODE}```\nIt's smooth.") == NAMELESS


def test_two_fences_are_two_candidates() -> None:
    drafts = read(f"First\n```python\n{CODE}```\nsecond\n```python\n{CODE.replace('loss(', 'other(')}```")
    assert isinstance(drafts, tuple)
    assert [draft.name for draft in drafts] == ["loss", "other"]


@pytest.mark.parametrize("before", ["", "Sure, here's the loss:\n\n", "import jax.numpy as jnp\n\n"])
@pytest.mark.parametrize(
    "after",
    ["", "\nIt's smooth, isn't it?", "\nThis (see above) works:\n- it is convex\n", "\nEnjoy", "\n'''"],
)
def test_the_first_function_in_prose(before: str, after: str) -> None:
    assert one(before + CODE + after) == NAMELESS


def test_a_function_ends_where_it_ends() -> None:
    header = ARGUMENTS.replace(", ", ",\n")
    code = f"def loss(\n{header},\n):\n    return beta * policy_chosen_logps\n"
    assert one(f"{code}\nprint(loss(1, 2, 3, 4, 5))\nAs you see, it is linear.").code == code
    assert one(textwrap.indent(code.replace("\n", "\r\n"), "    ")).code == code


def test_thoughts_are_not_answers() -> None:
    assert one(f"<think>{json.dumps({**ONE, 'name': 'no'})}</think>{json.dumps(ONE)}") == DRAFT
    assert without_thoughts("no thoughts") == "no thoughts"
    assert without_thoughts("the template wrote the tag</think>yes") == "yes"
    assert without_thoughts("<think>and never ended") == ""
    assert untidy("<think>and never ended", "length").remedy == "more_tokens"


def test_missing_names_and_thoughts_are_made_up() -> None:
    assert one(json.dumps({"code": CODE})) == NAMELESS
    assert one(json.dumps({"code": CODE, "name": None, "thought": 7})) == NAMELESS
    assert one(json.dumps({"source": CODE, "idea": "a\n b\tc\x00"})) == Draft("loss", CODE, "a b c")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"thought": "x", "name": "y"}', 'no "code"'),
        ('{"code": 7}', "not the text of a function"),
        ('{"code": "x + 1"}', "not the text of a function"),
        ("I cannot do that.", "neither JSON nor a function"),
        ("def loss(x:\n    return", "line 1 of the function"),
        ("def loss(x):\n    return x +* 2\n", "line 2 of the function"),
        ("[1, 2, 3]", "neither JSON nor a function"),
    ],
)
def test_the_reason_helps_to_repair(text: str, reason: str) -> None:
    result = untidy(text)
    assert result.remedy == "repair"
    assert reason in result.reason


def test_code_that_does_not_parse_is_the_gates_to_explain() -> None:
    broken = CODE.replace("beta * margin", "beta * * margin")
    drafts = read(json.dumps({**ONE, "code": broken}))
    assert isinstance(drafts, tuple) and drafts[0].code == broken
    two = f"{CODE}\n\ndef helper(x):\n    return x\n"
    drafts = read(json.dumps({**ONE, "code": two}))
    assert isinstance(drafts, tuple) and drafts[0].code == two


def test_a_function_that_the_limit_cut_is_no_candidate() -> None:
    for text in (CODE[:-20], f"```python\n{CODE[:-1]}", json.dumps(ONE)[:-30], CODE.rstrip()):
        assert untidy(text, "length").remedy == "more_tokens"
    assert one(f"{CODE}\nThis loss is", "length") == NAMELESS
    assert one(f"```python\n{CODE}```\nThis loss is", "length") == NAMELESS


def test_nothing_came() -> None:
    assert untidy("", "length").remedy == "more_tokens"
    assert untidy(" \n", "empty").remedy == "ask_again"
    blocked = untidy("", "safety", "the prompt was blocked:\nPROHIBITED_CONTENT")
    assert blocked.remedy == "ask_again" and "(the prompt was blocked: PROHIBITED_CONTENT)" in blocked.reason
    assert untidy("def loss(", "recitation").remedy == "ask_again"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Gentle Push", "gentle_push"),
        ("  __a--b  ", "a_b"),
        ("9lives", "loss_9lives"),
        ("lambda", "loss_lambda"),
        ("", "loss"),
        ("损失", "loss"),
        ("../../etc/passwd", "etc_passwd"),
        ("x" * 10_000, "x" * 40),
        ("9" + "x" * 99, "loss_9" + "x" * 34),
    ],
)
def test_identifiers(name: str, wanted: str) -> None:
    assert identifier(name) == wanted


def test_the_schema_is_within_the_strict_dialects() -> None:
    def check(node: dict) -> None:
        if node["type"] == "object":
            assert node["additionalProperties"] is False
            assert node["required"] == list(node["properties"])
            for inner in node["properties"].values():
                check(inner)
        if node["type"] == "array":
            check(node["items"])

    check(schema())
    check(schema(several=True))
    assert list(schema()["properties"]) == ["thought", "name", "code"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"code": "' + "x" * 10_000_000,
        "def loss(x):\n    return " + "(" * 100_000,
        "def loss(x):\n    return " + "-" * 100_000 + "x",
        "def loss(x):\n" + "\n".join(" " * depth + "if x:" for depth in range(1, 200)),
        "def loss(x):\n" * 10_000,
        "def loss(x): pass\n\x00",
        "```" * 100_000,
        "<think>" * 100_000,
        "[{" * 100_000,
        '{"code": "def \ud800"}',
        '{"code": "def \\ud800", "name": "\\ud800", "thought": "\\ud800"}',
        '{"n": ' + "9" * 100_000 + "}",
        "def loss(x):\n    return '''" + "\n" * 100_000,
        '{"' + '\\"' * 100_000,
        "{'" + '"' * 100_000,
        '{"""' + '"\\' * 100_000,
        "[,{" * 60_000 + "}]" * 10,
        "{'a': " * 15 + "(" * 50_000,
        "{'a': " + "-" * 90_000 + "1}",
        "{" + "," * 90_000 + "}",
        "{" + ", " * 45_000 + " " * 9000 + "}",
        "{'code': 'def '" + "+ 'x'" * 9000 + "}",
        "{(" + "(" * 5000 + ")" * 5000 + "): 1}",
    ],
    ids=range(25),
)
def test_no_reply_hangs_or_breaks_it(text: str) -> None:
    for finish in ("stop", "length"):
        sound(read(text, finish))


PIECES = st.sampled_from(
    ["{", "}", "[", "]", '"', ":", ",", "\\", "\\u", "```", "```json\n", "```python\n", "\n", "\r\n", "    ",
     "def loss(x):\n", "def ", "return x", "'''", '"""', "#", "<think>", "</think>", '"code"', '"name"',
     "null", "1e999", "\x00", "\ufeff", "\ud800", "\x0c", "\u2028", "@", "\\\n", "(", ")", "async ",
     "lambda", "\t"]
)  # fmt: skip


@settings(max_examples=400)
@given(
    text=st.text() | st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join),
    finish=st.sampled_from(["stop", "length", "safety", "recitation", "empty", "other"]),
    detail=st.text(max_size=20),
)
@example("def loss(x):\n    return x\n\x0c- prose", "length", "")
def test_any_text_gives_a_candidate_or_a_reason(text: str, finish: str, detail: str) -> None:
    sound(read(text, finish, detail))


@settings(max_examples=150)
@given(cut=st.integers(0, 1000), finish=st.sampled_from(["stop", "length"]), noise=st.text(max_size=10))
def test_any_cut_of_a_good_reply_gives_the_candidate_or_a_reason(cut: int, finish: str, noise: str) -> None:
    text = json.dumps({"candidates": [ONE]})
    result = read(text[:cut] + noise, finish)
    sound(result)
    if isinstance(result, tuple) and cut < len(text) - 4:
        assert result[0].code == CODE or finish == "stop"


def sound(result: tuple[Draft, ...] | Untidy) -> None:
    if isinstance(result, Untidy):
        assert result.remedy in ("repair", "more_tokens", "ask_again")
        assert 10 < len(result.reason) < 600 and result.reason.isprintable()
        return
    assert 1 <= len(result) <= 32
    for draft in result:
        assert draft.name.isidentifier() and len(draft.name) <= 40
        assert "def " in draft.code and len(draft.code) <= 20_001
        assert len(draft.thought) <= 2000 and draft.thought.isprintable()
        for text in (draft.name, draft.code, draft.thought):
            text.encode("utf-8")
