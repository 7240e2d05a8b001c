import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from discojax.data import sources
from discojax.data.sources import Account, Columns, Message, Preference
from discojax.errors import UserError

ROWS = [
    {"prompt": "the film", "chosen": " was fun", "rejected": " was dull"},
    {"prompt": "what a", "chosen": " joy", "rejected": " mess"},
]
USER, GOOD, BAD = (
    {"role": role, "content": said}
    for role, said in (("user", "How was it?"), ("assistant", "Fine."), ("assistant", "Dull."))
)
CHAT = Preference((Message("user", "How was it?"),), "Fine.", "Dull.")


def jsonl(path: Path, rows) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def read(source, **options):
    account = Account()
    return [row for _, row in sources.read_preferences(str(source), account, **options)], account


def refused(source, **options) -> str:
    with pytest.raises(UserError) as error:
        read(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROWS[0], Preference("the film", " was fun", " was dull")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, CHAT),
        ({"prompt": "How was it?", "chosen": [GOOD], "rejected": [BAD]}, CHAT),
        ({"prompt": "How was it?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHAT),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHAT),
        ({"prompt": [USER], "chosen": "Fine.", "rejected": "Dull."}, CHAT),
        (
            {"chosen": "Q: ? A: yes sir", "rejected": "Q: ? A: yet so"},
            Preference("Q: ? A:", " yes sir", " yet so"),
        ),
        (
            {"prompt": "the film", "chosen": 1, "rejected": [" was dull", " was fun"]},
            Preference("the film", " was fun", " was dull"),
        ),
        ({"chosen": "Why?\nYes", "rejected": "Why?\nYe"}, Preference("Why?\n", "Yes", "Ye")),
    ],
)
def test_a_pair_may_be_written_in_many_ways(tmp_path, row, expected):
    pairs, account = read(jsonl(tmp_path / "a.jsonl", [row]))
    assert pairs == [expected]
    assert (account.read, account.left_out) == (1, 0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("[1]", "not an object"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "x", "chosen": "a"}, "no rejected"),
        ({"prompt": "x", "chosen": None, "rejected": "b"}, "no chosen"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "x", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": "x", "chosen": 3, "rejected": "b"}, "chosen is neither text nor messages"),
        ({"prompt": "x", "chosen": [GOOD], "rejected": "b"}, "one side is a chat and the other is text"),
        ({"prompt": "x", "chosen": [GOOD, USER], "rejected": [BAD]},
         "chosen is not one reply of the assistant"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]},
         "prompt ends with the assistant's turn"),
        ({"prompt": [{"role": "usr", "content": "x"}], "chosen": "a", "rejected": "b"},
         "prompt holds something that is no message"),
        ({"prompt": [3], "chosen": "a", "rejected": "b"}, "prompt holds something that is no message"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_left_out_counted_and_named_by_its_line(tmp_path, row, reason):
    pairs, account = read(jsonl(tmp_path / "mine.jsonl", [ROWS[0], row, ROWS[1]]))
    assert len(pairs) == 2
    assert (account.read, account.left_out, dict(account.reasons)) == (3, 1, {reason: 1})
    assert account.named[0].startswith(f"mine.jsonl, line 2: {reason}")
    assert f"3 rows read, 1 left out: 1 {reason}" in str(account)


def test_only_the_first_few_are_named_and_all_are_counted(tmp_path):
    _, account = read(jsonl(tmp_path / "a.jsonl", [ROWS[0], *["{"] * 50]))
    assert account.left_out == 50 and len(account.named) == 5


def test_a_missing_column_names_the_nearest(tmp_path):
    rows = [{"prompt": "x", "choosen": "a", "rejected": "b"}]
    assert "no column 'chosen'; it has 'prompt', 'choosen', 'rejected'. Did you mean 'choosen'?" in refused(
        jsonl(tmp_path / "a.jsonl", rows)
    )
    pairs, _ = read(tmp_path / "a.jsonl", columns=Columns(chosen="choosen"))
    assert pairs == [Preference("x", "a", "b")]


def test_a_column_that_the_first_rows_lack_is_not_missing(tmp_path):
    pairs, account = read(jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "rejected": "b"}, ROWS[0]]))
    assert len(pairs) == 1 and account.reasons == {"no chosen": 1}


def test_a_missing_column_is_told_before_a_long_file_is_read(tmp_path):
    account = Account()
    source = jsonl(tmp_path / "a.jsonl", [{"prompt": "x"}] * 5000)
    with pytest.raises(UserError, match="no column 'chosen'"):
        list(sources.read_preferences(source, account))
    assert account.read == 100


def test_parquet_is_read_as_jsonl_is(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "score": 1.0},
        {"prompt": [USER], "chosen": None, "rejected": [BAD], "score": 1.0},
    ] * 300
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    pairs, account = read(tmp_path / "a.parquet")
    assert pairs == [CHAT] * 300
    assert account.named[0] == "a.parquet, row 2: no chosen"
    assert read(tmp_path)[0] == pairs, "a folder of files"
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(20))
    assert "b.parquet is not a Parquet file" in refused(tmp_path / "b.parquet")


def test_memory_is_bounded(tmp_path):
    row = json.dumps({"prompt": "x" * 500, "chosen": "a" * 500, "rejected": "b" * 500})
    with (tmp_path / "a.jsonl").open("w") as file:
        file.writelines(f"{row}\n" for _ in range(20_000))  # 30 MB
    tracemalloc.start()
    count = sum(1 for _ in sources.read_preferences(str(tmp_path / "a.jsonl"), Account()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 3e6


def test_sources_that_are_not_there_are_a_sentence(tmp_path, monkeypatch):
    jsonl(tmp_path / "mine.jsonl", ROWS)
    assert "Did you mean 'mine.jsonl'?" in refused(tmp_path / "mne.jsonl")
    assert "holds no .jsonl" in refused(os.path.dirname(__file__))
    (tmp_path / "a.csv").write_text("prompt,chosen\n")
    assert "one JSON object a line" in refused(tmp_path / "a.csv")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "no row that can be used: 0 rows read" in refused(tmp_path / "empty.jsonl")
    assert "no row that can be used: 1 rows read, 1 left out" in refused(jsonl(tmp_path / "b.jsonl", ["{"]))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "discojax[hub]" in refused("hf:owner/name") and "discojax[hub]" in refused("owner/name")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install tensorflow-datasets" in refused("tfds:name") and "tensorflow" in refused("name")


def test_prompts_of_ones_own(tmp_path):
    def prompts(source, **options):
        account = Account()
        return [prompt for _, (prompt, _) in sources.read_answered(str(source), account, **options)], account

    rows = [{"prompt": "the film"}, {"prompt": [USER]}, {"prompt": ""}]
    got, account = prompts(jsonl(tmp_path / "a.jsonl", rows))
    assert got == ["the film", CHAT.prompt]
    assert account.reasons == {"no prompt": 1}
    (tmp_path / "a.txt").write_text("one\n\ntwo\r\n", newline="")
    assert prompts(tmp_path / "a.txt")[0] == ["one", "two"]
    with pytest.raises(UserError, match="no column 'question'; it has 'prompt'"):
        prompts(tmp_path / "a.jsonl", columns=("question", ""))


def test_prompts_with_what_people_wrote_to_them(tmp_path):
    def answered(rows, *columns):
        account = Account()
        return [
            row
            for _, row in sources.read_answered(jsonl(tmp_path / "a.jsonl", rows), account, columns=columns)
        ], account

    got, account = answered(
        [{"post": "A post", "label": " short"}, {"post": "B", "label": " "}], "post", "label"
    )
    assert got == [("A post", " short")] and account.reasons == {"label is empty": 1}
    chats = [{"chosen": [USER, GOOD]}, {"chosen": [GOOD]}, {"chosen": "text"}, {"chosen": [USER, GOOD, BAD]}]
    got, account = answered(chats, "", "chosen")  # whole conversations, of which the last turn was written
    assert got == [(CHAT.prompt, "Fine.")]
    assert account.reasons == {
        "chosen is no prompt with a reply to it": 2,
        "chosen is text and no conversation": 1,
    }


def test_a_tfds_data_set_without_tensorflow(tmp_path):
    """Built in the test, in array_record, and read as a data source."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if not hasattr(tfds, "core"):
        pytest.skip("this tensorflow-datasets is empty: protobuf is of another version")

    class Films(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            turn = tfds.features.Sequence({"role": text, "content": text})
            features = tfds.features.FeaturesDict({"prompt": text, "chosen": turn, "rejected": turn})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for number in range(3):
                yield number, {"prompt": "How was it?", "chosen": [GOOD], "rejected": [BAD]}

    builder = Films(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    pairs, account = read(f"tfds:{builder.data_path}", split="test")
    assert pairs == [CHAT] * 3 and account.read == 3
    assert read(builder.data_path)[0] == pairs, "a folder that holds one"
    assert "'tset'" in refused(f"tfds:{builder.data_path}", split="tset")


@pytest.mark.parity
def test_a_data_set_through_the_hubs_library(tmp_path, monkeypatch):
    """`datasets` comes with TRL; it reads a folder as it reads a data set of the hub."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    jsonl(tmp_path / "train.jsonl", [ROWS[0], {"prompt": "x"}, ROWS[1]])
    pairs, account = read(f"hf:{tmp_path}")
    assert [pair.chosen for pair in pairs] == [" was fun", " joy"]
    assert account.left_out == 1
    assert "'tset'" in refused(f"hf:{tmp_path}", split="tset")
