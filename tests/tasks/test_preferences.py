"""The task of one's own data: what is trained on, what is measured on, and all that can be wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from discojax.data import reviews
from discojax.data.pairs import Pairs
from discojax.errors import UserError
from discojax.policies.decoder import DecoderConfig
from discojax.policies.lora import LoraConfig
from discojax.policies.sft import SftConfig
from discojax.tasks import catalogue, preferences
from discojax.tasks.judges import Verdicts
from discojax.tasks.types import OwnData, Prompts, TaskConfig, assert_disjoint


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Pairs of real sentences, two malformed rows among them, and a reward."""
    root = tmp_path_factory.mktemp("home")
    texts = [text.split() for text in reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts[:400]]
    rows = [
        {"prompt": " ".join(a[:3]), "chosen": " " + " ".join(a[3:8]), "rejected": " " + " ".join(b[3:8])}
        for a, b in zip(texts[::2], texts[1::2], strict=False)
        if len(a) > 8 and len(b) > 8
    ][:120]
    rows[7]["prompt"] = " ".join(" ".join(a) for a in texts[:4])  # longer than any context here
    lines = [json.dumps(row) for row in rows]
    lines[3:3] = ["not json", json.dumps({"prompt": "a film", "chosen": "good"})]
    (root / "pairs.jsonl").write_text("\n".join(lines))
    (root / "prompts.txt").write_text("\n".join([rows[0]["prompt"], *(" ".join(a) for a in texts[300:340])]))
    (root / "lengths.py").write_text(
        "def score(prompts, completions):\n    assert len(prompts) == len(completions)\n"
        "    return [len(p) + len(c) for p, c in zip(prompts, completions)]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        yield root


OWN = OwnData(pairs="pairs.jsonl", report_reward="lengths:score")
CONFIG = TaskConfig(
    policy=DecoderConfig(vocab_size=400, layers=1, width=16, heads=2, max_length=32),
    sft=SftConfig(steps=4, batch=8),
    prompt_tokens=15,
    completion_tokens=16,
    pairs=500,
    held_out_pairs=6,
    own=OWN,
)


def build(home, **changes):
    own = replace(OWN, **changes)
    return catalogue.build_all(["preferences"], replace(CONFIG, own=own), root=home / "cache")["preferences"]


@pytest.fixture(scope="module")
def task(home):
    return build(home)


def trained(task) -> set[tuple[int, ...]]:
    return set(Prompts(task.pairs.chosen_ids, task.pairs.prompt_length).rows())


def test_what_is_measured_is_not_trained_on_and_in_one_part_only(task):
    every = [row for prompts in task.prompts.values() for row in prompts.rows()]
    assert len(every) == len(set(every)) > 10 and not set(every) & trained(task)
    assert set(task.prompts) == set(preferences.SPLITS)
    assert len(task.prompts["report"].lengths) > len(task.prompts["search"].lengths) > 0
    assert task.held_out is not None and 0 < len(task.held_out.prompt_length) <= 6
    held = set(Prompts(task.held_out.chosen_ids, task.held_out.prompt_length).rows())
    assert not held & trained(task)
    assert_disjoint([task], [task])


def test_rows_left_out_are_named_by_their_lines_and_the_task_says_how_many(task):
    assert (task.facts["rows read"], task.facts["rows left out"]) == (122, 2)
    assert task.facts["named"][0].startswith("pairs.jsonl, line 4: not JSON")
    assert task.facts["named"][1].startswith("pairs.jsonl, line 5: no rejected")
    (said,) = task.facts["data"]
    assert "122 rows read, 2 left out" in said and "pairs to train on" in said


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(home, task):
    assert all(len(row) <= 16 for prompts in task.prompts.values() for row in prompts.rows())
    assert (task.pairs.prompt_length <= 16).all()
    shortened = task.facts["in tokens"].get("shortened prompts", 0) + task.facts["prompts"].get(
        "prompts shortened", 0
    )
    assert shortened >= 1


def test_rewards_and_judges_are_shown_prompts_as_their_source_has_them(task):
    given = task.decode(task.prompts["report"].rows())
    values = task.reward["report"](given, ["x"] * len(given))
    np.testing.assert_array_equal(values, [len(text) + 1 for text in task.texts["report"]])
    assert task.asked("report") == list(task.texts["report"])
    assert len(task.references["report"]) == len(given)  # what was chosen


def test_pairs_have_reference_log_probabilities_in_the_dtype_of_the_population(home, task):
    config = replace(CONFIG, own=OWN, dtype="bfloat16")
    half = catalogue.build_all(["preferences"], config, root=home / "cache")["preferences"]
    np.testing.assert_array_equal(task.pairs.chosen_ids, half.pairs.chosen_ids)
    assert not np.array_equal(task.pairs.reference_chosen, half.pairs.reference_chosen)
    np.testing.assert_allclose(task.pairs.reference_chosen, half.pairs.reference_chosen, rtol=0.02)


def test_lanes_of_adapters_begin_as_the_base_they_share(home, task):
    config = replace(CONFIG, own=OWN, lora=LoraConfig(rank=2))
    lanes = catalogue.build_all(["preferences"], config, root=home / "cache")["preferences"]
    assert sum(x.size for x in jax.tree.leaves(lanes.params)) == lanes.facts["parameters"]
    assert lanes.facts["frozen parameters"] == task.facts["parameters"] and task.frozen is None
    np.testing.assert_array_equal(lanes.pairs.reference_chosen, task.pairs.reference_chosen)
    from discojax.data.reference import pair_logps

    chosen, _ = pair_logps(Pairs(*lanes.pairs), lanes.graph, lanes.params, lanes.frozen, tokens=16)
    np.testing.assert_array_equal(chosen, lanes.pairs.reference_chosen)  # to the last bit
    assert lanes.identity != task.identity


def test_prompts_of_another_source_report_and_those_that_training_has_do_not(home, task):
    other = build(home, prompts="prompts.txt", openings=True)
    assert other.facts["prompts"]["rows of prompts"] == 41
    assert all(2 <= len(row) - 1 <= 15 for row in other.prompts["report"].rows())
    assert not set(other.prompts["report"].rows()) & (trained(other) | set(other.prompts["select"].rows()))
    whole = build(home, prompts="prompts.txt")
    assert len(whole.prompts["report"].lengths) < 41 or whole.facts["prompts"]["prompts shortened"]
    assert not whole.references.get("report")  # nobody answered them
    with pytest.raises(UserError, match="rouge compares with what people wrote: name the column"):
        build(home, prompts="prompts.txt", report_reward="rouge")


def test_rows_of_prompts_that_are_left_out_are_named(home):
    rows = [json.dumps({"prompt": f"a film about {what} and time"}) for what in ("war", "love", "cats")]
    rows[1:1] = ["{", json.dumps({"prompt": 3})]
    (home / "asked.jsonl").write_text("\n".join(rows))
    task = build(home, prompts="asked.jsonl")
    assert [one.partition(":")[0] for one in task.facts["named"][-2:]] == [
        "asked.jsonl, line 2", "asked.jsonl, line 3",
    ]  # fmt: skip
    assert "of prompts first asked.jsonl, line 2: not JSON" in task.facts["data"][0]


def test_what_is_given_has_a_hash_that_weights_have_no_part_in(home, task):
    other = replace(CONFIG, own=OWN, sft=SftConfig(steps=5, batch=8))
    again = catalogue.build_all(["preferences"], other, root=home / "cache")["preferences"]
    assert again.identity != task.identity and again.source == task.source
    lines = (home / "pairs.jsonl").read_text().splitlines()
    kept = trained(task)
    texts = task.decode(sorted(kept))
    at = next(
        i for i, line in enumerate(lines) if '"rejected"' in line and json.loads(line)["prompt"] in texts
    )
    row = json.loads(lines[at])
    lines[at] = json.dumps({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    (home / "swapped.jsonl").write_text("\n".join(lines))
    swapped = build(home, pairs="swapped.jsonl")
    assert swapped.texts["report"] == task.texts["report"]
    assert swapped.source != task.source
    module = home / "lengths.py"
    text = module.read_text()
    module.write_text(f"{text}# edited\n")
    assert build(home).source != task.source
    module.write_text(text)
    assert build(home).source == task.source


def test_rouge_is_with_what_was_chosen(home):
    task = build(home, report_reward="rouge")
    given = task.decode(task.prompts["report"].rows())
    assert np.allclose(task.reward["report"](given, task.references["report"]), 1)
    assert np.allclose(task.reward["report"](given, [""] * len(given)), 0)


def test_another_reward_is_of_another_kind_than_the_reports_or_there_is_none(home, task):
    kind, _ = catalogue.other_reward(task, "report")
    assert kind == "ROUGE-L"
    assert catalogue.other_reward(build(home, report_reward="rouge"), "report") is None
    two = build(home, reward="lengths:score", report_reward="rouge")
    kind, other = catalogue.other_reward(two, "report")
    assert kind == "the search's"
    given = two.decode(two.prompts["report"].rows())
    assert not np.allclose(
        other(given, two.references["report"]), two.reward["report"](given, two.references["report"])
    )
    unanswered = build(home, prompts="prompts.txt")
    assert catalogue.other_reward(unanswered, "report") is None  # one reward for everything


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": ""}, "takes pairs: set task.data"),
        ({"report_reward": ""}, "takes a reward: set evaluation.reward"),
        ({"pairs": "nothing.jsonl"}, "no file 'nothing.jsonl'"),
        ({"columns": ("prompt", "better", "rejected")}, "has no column 'better'"),
        ({"report_reward": "lengths:scor"}, "Did you mean 'score'"),
        ({"report_reward": "judge:somebody"}, "no judge that can be asked"),
        ({"style": "chat"}, "has no chat template"),
    ],
)
def test_what_is_missing_is_one_sentence(home, changes, message):
    with pytest.raises(UserError, match=message):
        build(home, **changes)


def test_a_search_takes_one_reward_to_score_and_another_to_report(home):
    preferences.check_rewards(replace(OWN, reward="rouge"), search=True)
    for reward in ("", "lengths:score"):
        with pytest.raises(UserError, match="A search takes two rewards"):
            preferences.check_rewards(replace(OWN, reward=reward), search=True)
    two = build(home, reward="rouge")
    assert two.rewards["search"] != two.rewards["report"]
    assert_disjoint([two], [two])
    same = build(home, reward="lengths:score")
    with pytest.raises(UserError, match="is one that preferences labels or searches with"):
        assert_disjoint([same], [same])


class Sulking:
    """A judge that sometimes gives no verdict."""

    name, proxy = "sulking", False

    def __init__(self, every: int):
        self.every = every

    def compare(self, prompts, first, second):
        missing = np.arange(len(prompts)) % self.every == 0
        win = np.where(missing, np.nan, [float(len(a) > len(b)) for a, b in zip(first, second, strict=True)])
        return Verdicts(win, np.zeros(len(win)), 2.0 * missing, np.zeros(len(win)))


@pytest.mark.parametrize("every", [20, 5])
def test_a_judge_without_a_verdict_is_counted_and_never_a_zero(every):
    from discojax.tasks.own_rewards import judged

    counts: dict[str, int] = {}
    prompts = [f"prompt {i}" for i in range(40)]
    reward = judged(Sulking(every), dict.fromkeys(prompts, "middling"), counts)
    values = reward(prompts, ["a longer reply"] * 40)
    missing = np.arange(40) % every == 0
    assert np.isnan(values[missing]).all() if every == 5 else (values[missing] == 0.5).all()
    assert (values[~missing] == 1).all()
    assert counts == {"completions judged": 40, "unparseable": 2 * missing.sum(), "unanswered": 0}
