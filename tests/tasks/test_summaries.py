"""Summaries of docstrings: what is extracted, how it goes through TFDS, and folds that share nothing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from discojax.data import reviews, tokenizer
from discojax.data.readers import read_rows
from discojax.errors import UserError
from discojax.policies.decoder import DecoderConfig
from discojax.policies.sft import SftConfig
from discojax.tasks import catalogue, docstrings, summaries
from discojax.tasks.types import TaskConfig

SOURCE = '''
"""Does nothing of note here.

This module is only read by a test, and says so in a sentence that is long enough to count as prose.
"""

def good(x):
    """Adds one to a number.

    The number may be of any kind that knows addition, and :class:`so` on; nothing else is done with it
    than what the ``first`` line says.

    Args:
      x: this is not prose.
    """

def overload(x):
    """Adds one to a number.

    A second text with the same summary, which a model would learn by heart, so that it is left out.
    """

def no_prose(x):
    """Adds two to a number.

    Args:
      x: a number with a description that is quite long, longer in fact than twelve words are.
    """

def wrapped(x):
    """A summary that goes on and on and on for more words than any summary of one line should do, really so.

    The text below it is long enough, and has nothing wrong with it, but the summary is too long by far.
    """

def repeated(x):
    """Finds the largest item.

    Finds the largest item. It does so by looking at every one of them in turn until there are no more.
    """

class Broken:
    def method(self): ...
'''


def test_what_is_a_document(tmp_path):
    (tmp_path / "module.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SOURCE.replace("Adds one", "Tests one"))
    (tmp_path / "template.py").write_text("{{ not python }}")
    found = {d.name: d for d in docstrings.extract({"lib": tmp_path})}
    assert set(found) == {"lib:module.__doc__", "lib:module.good"}
    good = found["lib:module.good"]
    assert good.summary == "Adds one to a number."
    assert good.body.startswith("The number may be of any kind") and good.body.endswith("first line says.")
    assert "Args" not in good.body and "`" not in good.body and ":class:" not in good.body


def test_extraction_does_not_depend_on_the_order_of_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(SOURCE.replace("The number may", f"The {name} number may"))
    documents = docstrings.extract({"lib": tmp_path})
    bodies = [d.body for d in documents]
    assert len({d.summary for d in documents}) == len(set(bodies)) == len(bodies)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three libraries, and few reviews."""
    with pytest.MonkeyPatch.context() as patch:
        roots = {k: v for k, v in docstrings._roots().items() if k in ("flax", "optax", "sklearn")}
        patch.setattr(docstrings, "_roots", lambda: roots)
        yield tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(few):
    pytest.importorskip("tensorflow_datasets")
    from discojax.tasks import builders

    return builders.prepare(builders.Docstrings, few)


def test_our_builder_is_read_as_any_tfds_data_set_is(folder, few):
    from discojax.tasks import builders

    rows = [row for _, row in read_rows(str(folder), "train")]
    expected = {(d.name, d.body, d.summary) for d in docstrings.extract()}
    assert {tuple(row[k].decode() for k in ("name", "document", "summary")) for row in rows} == expected
    assert len(rows) == len(expected) > 500
    before = folder.stat().st_mtime_ns
    assert builders.prepare(builders.Docstrings, few) == folder and folder.stat().st_mtime_ns == before


def test_the_reviews_go_through_a_builder_too(few, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from discojax.tasks import builders

    texts = reviews.load().take(range(50))
    monkeypatch.setattr(reviews, "load", lambda: texts)
    rows = [row for _, row in read_rows(str(builders.prepare(builders.FilmReviews, tmp_path)), "train")]
    found = {(row["text"].decode(), int(row["label"]), reviews.SOURCES[row["source"]]) for row in rows}
    assert found == set(zip(texts.texts, texts.labels.tolist(), texts.sources, strict=True))


def test_packaged_data_are_read_by_name_and_a_copy_goes_stale_with_its_libraries(tmp_path):
    """In a process that has imported no builder, as the command line's has not."""
    pytest.importorskip("tensorflow_datasets")
    code = """
from discojax.data.readers import read_rows
from discojax.errors import UserError
from discojax.tasks import docstrings, preferences

def texts():
    return [row["document"].decode() for _, row in read_rows("tfds:docstrings", "train")]

docstrings.extract = lambda: [docstrings.Document(text, text, "Sum.") for text in ("of these", "two")]
print(texts() == texts() == ["of these", "two"])
docstrings.extract = lambda: [docstrings.Document("a", "of others", "Sum.")]
print(texts() == ["of these", "two"])
docstrings.versions = lambda: {"jax": "upgraded"}
print(texts() == ["of others"])
try:
    list(read_rows("tfds:docstring", "train"))
except UserError as error:
    print("'docstring'" in str(error))
from discojax.tasks import builders
print(builders.Docstrings.VERSION != builders._version(builders._libraries()))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env={**os.environ, "DISCOJAX_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert found.stdout.split() == ["True"] * 5, found.stderr


def test_without_tfds_the_documents_are_the_same_in_the_same_order(folder, few, monkeypatch):
    quiet = lambda what, done, total: None  # noqa: E731
    expected = summaries._documents(None, few, quiet)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "discojax.tasks.builders")
    with pytest.raises(ImportError):
        importlib.import_module("tensorflow_datasets")
    assert summaries._documents(None, few, quiet) == expected and len(expected["policy"]) > 100


CONFIG = TaskConfig(
    policy=DecoderConfig(vocab_size=1500, layers=1, width=16, heads=2, max_length=63),
    sft=SftConfig(steps=4, batch=8),
    prompt_tokens=40,
    completion_tokens=22,
    pairs=12,
    completions=2,
    held_out_pairs=4,
)


@pytest.fixture(scope="module")
def task(few, folder):
    return summaries.build(CONFIG, root=few)


def test_no_post_is_in_two_folds(task):
    rows = [row for prompts in task.prompts.values() for row in prompts.rows()]
    trained = [tuple(row[:n]) for pairs in (task.pairs, task.held_out)
               for row, n in zip(pairs.chosen_ids.tolist(), pairs.prompt_length, strict=True)]  # fmt: skip
    assert len(set(rows)) == len(rows) and len(set(trained)) == len(trained)
    assert not set(rows) & set(trained)
    assert len({task.rewards[name] for name in ("label", "search", "report")}) == 3


def test_a_post_that_is_too_long_is_shortened_and_counted_and_keeps_the_marker(task):
    prompts = task.prompts["report"]
    texts = task.decode(prompts.rows())
    assert all(text.endswith(summaries.MARKER) for text in texts)
    assert prompts.lengths.max() == 41 and (prompts.ids[:, 0] == tokenizer.BOS).all()
    assert task.facts["posts shortened"] > 0
    assert task.facts["posts left out for a summary that is too long"] > 0
    assert summaries.bodies_of(texts)[0] + summaries.MARKER == texts[0]
    (said,) = task.facts["data"]  # which is printed
    assert f"{task.facts['posts shortened']} posts shortened" in said and "a summary that is too long" in said


def test_the_human_summary_is_whole_and_the_proxy_knows_it_from_a_sample(task):
    references = task.references["report"]
    assert all(text.strip().endswith(".") for text in references)
    prompts = task.decode(task.prompts["report"].rows())
    score = task.reward["report"]
    assert score(prompts, references).mean() > 0.5
    assert np.isfinite(score(prompts, [""] * len(prompts))).all()  # an empty generation has a score
    accuracies = task.facts["proxy accuracy"]
    assert set(accuracies) == {"reward_label", "reward_search", "reward_report"}
    assert min(accuracies.values()) > 0.7  # on posts that it was not trained on
    kind, other = catalogue.other_reward(task, "report")
    assert kind == "ROUGE-L"
    np.testing.assert_allclose(other(prompts, references), 1.0)


def test_built_again_it_is_the_same(task, few):
    assert summaries.build(CONFIG, root=few).identity == task.identity


def test_prompts_too_short_for_a_post_are_refused(few, folder):
    import dataclasses

    with pytest.raises(UserError, match=r"task.prompt_tokens is 9, too few .* `--config tldr`"):
        summaries.build(dataclasses.replace(CONFIG, prompt_tokens=9), root=few)


def test_too_few_documents_are_a_sentence(few, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"document": "a text", "summary": "a line"}\n{"document": "", "summary": "none"}\n')
    with pytest.raises(UserError, match="has 1 documents .* too few"):
        summaries.build(CONFIG, source=str(path), root=few)


def test_tasks_are_found_by_name():
    with pytest.raises(UserError, match="No task is called 'tdlr'.* Did you mean 'tldr'"):
        catalogue.build_all(["tdlr"], CONFIG)
    with pytest.raises(UserError, match="imdb and tldr have different policies"):
        catalogue.build_all(["imdb", "tldr"], CONFIG)
