import subprocess
import sys

import pytest

from discojax.data import cache, reviews, tokenizer
from discojax.errors import UserError

TEXTS = ["a charming , funny film .", "A dull film.", "the film is what it is"] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tokenizer.build(reviews.load(), 2048, tmp_path_factory.mktemp("cache"))
    return tokenizer.load(path)


def test_special_tokens_have_fixed_ids_and_the_vocabulary_its_size(trained):
    assert trained.get_vocab_size() == 2048
    assert [trained.id_to_token(i) for i in range(3)] == ["<pad>", "<bos>", "<eos>"]


@pytest.mark.parametrize(
    "text",
    [
        "The Film's ENDING — naïve, 100% fun?!",
        " leading and  double spaces ",
        "tab\tnewline\n",
        "日本語 emoji 🎬 and \x00",
        "<pad><bos><eos> is text",
        "",
    ],
)
def test_decoding_gives_the_text_in_lower_case(trained, text):
    ids = tokenizer.encode(trained, text)
    assert tokenizer.decode(trained, ids) == text.lower()
    assert not {tokenizer.PAD, tokenizer.BOS, tokenizer.EOS} & set(ids)


def test_special_tokens_are_not_decoded(trained):
    ids = tokenizer.encode(trained, "fine")
    assert tokenizer.decode(trained, [tokenizer.BOS, *ids, tokenizer.EOS, tokenizer.PAD]) == "fine"


def test_a_review_cannot_end_itself_even_after_a_reload(trained):
    for text in ("<eos>", "so <eos> ends", "<pad>"):
        ids = tokenizer.encode(trained, text)
        assert len(ids) >= 3
        assert not {tokenizer.PAD, tokenizer.BOS, tokenizer.EOS} & set(ids)


def test_case_does_not_matter(trained):
    assert tokenizer.encode(trained, "A FILM") == tokenizer.encode(trained, "a film")


def test_a_batch_is_each_alone(trained):
    texts = ["one film", "", "another, longer film"]
    assert tokenizer.encode_batch(trained, texts) == [tokenizer.encode(trained, text) for text in texts]


@pytest.mark.parametrize("source", reviews.SOURCES)
def test_unseen_text_is_short_in_both_sources(trained, source):
    texts = reviews.fold(reviews.load(), source, "prompts_report").texts[:200]
    tokens = sum(map(len, tokenizer.encode_batch(trained, texts)))
    assert tokens / sum(len(text.split()) for text in texts) < 1.8


def test_training_is_the_same_in_every_process():
    code = (
        "from discojax.data import reviews, tokenizer, cache; "
        "texts = reviews.fold(reviews.load(), 'rotten_tomatoes', 'policy').texts; "
        "print(cache.content_hash(tokenizer.train(texts, 1000).to_str()))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    texts = reviews.fold(reviews.load(), "rotten_tomatoes", "policy").texts
    assert there.strip() == cache.content_hash(tokenizer.train(texts, 1000).to_str())


def test_is_trained_again_only_if_the_text_or_the_size_changes(tmp_path, monkeypatch):
    data = reviews.load().take(range(1000))
    first = tokenizer.build(data, 300, tmp_path)
    monkeypatch.setattr(tokenizer, "train", None)
    assert tokenizer.build(data, 300, tmp_path) == first
    monkeypatch.undo()
    assert tokenizer.build(data, 301, tmp_path) != first
    assert tokenizer.build(data.take(range(900)), 300, tmp_path) != first


def test_sizes_too_small_and_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 259"):
        tokenizer.train(TEXTS, 258)
    assert tokenizer.train(TEXTS, 259).get_vocab_size() == 259
    with pytest.raises(UserError, match=r"none\.json"):
        tokenizer.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(UserError, match=r"broken\.json"):
        tokenizer.load(tmp_path / "broken.json")
    other = tokenizer.Tokenizer(tokenizer.models.BPE())
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(UserError, match="<bos>"):
        tokenizer.load(tmp_path / "other.json")
