"""Configuration: what is read is typed and in range, and every mistake is one sentence."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from discojax.config import Config, Evaluation, Policy, Population, Run, Search, dump, find, load
from discojax.errors import UserError
from discojax.settings import Range, defaults, parse


@dataclass(frozen=True)
class Inner:
    a: int = 1
    b: int = 2


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner(a=10)


def sentence(call, *arguments, **keywords) -> str:
    """The text of the UserError that the call raises, which must be a sentence or two of one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text and text[-1] in ".?" and len(text) < 400, text
    return text


def test_the_quickstart_file_and_the_defaults_are_the_same() -> None:
    assert load("quickstart") == Config() == load()


def test_the_quickstart_file_sets_every_setting(repository: Path) -> None:
    text = (repository / "configs/quickstart.yaml").read_text()
    written = parse(Config, text)
    file = yaml.safe_load(text)

    def leaves(tree: dict, prefix: str = "") -> list[str]:
        return [
            name
            for key, value in tree.items()
            for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
        ]

    assert sorted(leaves(file)) == sorted(defaults(Config))
    assert written == Config()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=str)
def test_every_config_in_the_repository_loads_and_its_header_names_its_command(path: Path) -> None:
    assert isinstance(load(path), Config)
    assert "python -m discojax.launch" in path.read_text().split("\n\n")[0]


def test_overrides_change_only_what_they_name() -> None:
    config = load("quickstart", ["policy.layers=2", "sft.learning_rate=1e-4", "search.betas=[1, 0.5]"])
    assert config.policy == Policy(layers=2)
    assert config.sft.learning_rate == 1e-4
    assert config.search == Search(betas=(1.0, 0.5))
    assert config.run == Run()


def test_a_later_override_wins_and_a_section_can_be_given_whole() -> None:
    config = load(None, ["policy={layers: 1, width: 64}", "policy.layers=5"])
    assert config.policy == Policy(layers=5, width=64)


def test_an_int_becomes_a_float_where_one_is_declared() -> None:
    temperature = load(None, ["task.temperature=2"]).task.temperature
    assert (temperature, type(temperature)) == (2.0, float)


def test_a_file_may_leave_sections_out_or_empty(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("policy:\nrun:\n  seed: 7\n")
    assert load(file) == dataclasses.replace(Config(), run=Run(seed=7))
    file.write_text("")
    assert load(file) == Config()


def test_a_section_keeps_its_own_defaults_beside_an_override() -> None:
    assert parse(Outer, "", ["inner.b=3"]) == Outer(Inner(a=10, b=3))


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("polcy.layers=3", "policy.layers"),
        ("policy.layer=3", "policy.layers"),
        ("layers=3", "policy.layers"),
        ("lanes=3", "population.lanes"),
        ("kl_bugdet=3", "evaluation.kl_budget"),
        ("populaton={lanes: 3}", "population"),
        ("policy={heds: 3}", "policy.heads"),
        ("policy.layers.deep=3", "policy.layers"),
        ("population.mesh.lanes=3", "population.mesh.lane"),
        ("run..seed=3", "run.seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    text = sentence(load, None, [override])
    assert repr(override) in text and f"the nearest is {nearest!r}" in text


@pytest.mark.parametrize(
    ("override", "expected", "got"),
    [
        ("policy.layers=three", "policy.layers must be a whole number, at least 1", "got 'three'"),
        ("policy.layers=0", "policy.layers must be a whole number, at least 1", "got 0"),
        ("policy.layers=2.0", "policy.layers must be a whole number", "got 2.0"),
        ("run.seed=true", "run.seed must be a whole number", "got true"),
        ("run.seed=", "run.seed must be a whole number", "got nothing"),
        ("run.name=3", "run.name must be text", "got 3. Put it in quotes"),
        ("sft.learning_rate=0", "sft.learning_rate must be a number, above 0", "got 0"),
        ("sft.learning_rate=.inf", "sft.learning_rate must be a number, above 0", "got inf"),
        ("sft.learning_rate=.nan", "sft.learning_rate must be a number, above 0", "got nan"),
        ("evaluation.confidence=1.5", "above 0 and at most 1", "got 1.5"),
        ("search.betas=0.1", "search.betas must be a list with each item a number, above 0", "got 0.1"),
        ("search.betas=[0.1, a]", "search.betas must be a list", "got [0.1, 'a']"),
        ("search.rungs=[[1]]", "search.rungs must be a list with each item a list of", "got [[1]]"),
        ("search.library={a: 1}", "search.library must be a list", "got {'a': 1}"),
        ("population.implementation=vmpa", "one of 'auto', 'vmap', 'map'", "Did you mean 'vmap'?"),
        ("policy=3", "policy is a section", "it holds layers, width"),
    ],
)
def test_a_wrong_value_names_key_expected_and_got(override: str, expected: str, got: str) -> None:
    text = sentence(load, None, [override])
    assert expected in text and got in text and repr(override) in text


@pytest.mark.parametrize(
    "override",
    [
        "seed", "=3", "run.seed=[", "run.seed=*x", "run.seed=!!python/object/apply:os.system [id]",
        "run.name=a: b: c", "run={[1]: 2}", "search.betas=&a [*a]", "run.seed=" + "[" * 9000,
        "run.seed=" + "9" * 9000, "run.seed=\x00", "run.name=a/b", "run.name='..'", "run.name=''",
        "policy.width=3", "task.completion_tokens=99",
    ],
)  # fmt: skip
def test_hopeless_overrides_are_a_sentence_too(override: str) -> None:
    sentence(load, None, [override])


@given(st.text(max_size=40))
def test_no_override_raises_anything_but_a_user_error(text: str) -> None:
    for override in (text, f"run.name={text}", f"policy={text}", f"{text}=1"):
        try:
            assert isinstance(load(None, [override]), Config)
        except UserError:
            pass


@given(st.text(max_size=60))
def test_no_file_raises_anything_but_a_user_error(text: str) -> None:
    for document in (text, f"run:\n  {text}", f"search:\n  library: {text}"):
        try:
            assert isinstance(parse(Config, document), Config)
        except UserError:
            pass


def test_mistakes_in_a_file_name_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text, line, what in [
        ("run:\n  seed: 1\n  sed: 2\n", 3, "the nearest is 'run.seed'"),
        ("# comment\n\npolicy:\n  layers: many\n", 4, "policy.layers must be a whole number"),
        ("run:\n  seed: 1\n  seed: 2\n", 3, f"run.seed was set already in {file}, line 2"),
        ("run: [\n", 2, "not valid YAML"),
        ("run:\n\tseed: 1\n", 2, "not valid YAML"),
        ("- 1\n", 1, "made of sections"),
        ("hello\n", 1, "made of sections"),
        ("---\nrun:\n---\nrun:\n", 3, "not valid YAML"),
        ("run: 3\n", 1, "run is a section"),
    ]:
        file.write_text(text)
        message = sentence(load, file)
        assert message.startswith(f"{file}, line {line}:") and what in message


def test_a_missing_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "quickstart.yaml" in sentence(load, "quikstart")
    (tmp_path / "alpha.yaml").write_text("")
    (tmp_path / "omega.yaml").write_text("")
    assert repr(str(tmp_path / "alpha.yaml")) in sentence(load, tmp_path / "alhpa.yaml")
    assert "is a folder" in sentence(load, tmp_path)
    assert "no config file" in sentence(load, tmp_path / "no/such.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in sentence(load, binary)


def test_a_bare_name_is_sought_in_configs_here_before_the_clones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("quickstart").is_file()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("run: {seed: 5}")
    (tmp_path / "configs/mine.yaml").write_text("run: {seed: 6}")
    assert load("quickstart").run.seed == 5
    assert load("mine").run.seed == load("mine.yaml").run.seed == 6


def test_a_revision_and_cudnn_need_what_they_are_for() -> None:
    assert "set policy.pretrained to its id too" in sentence(load, None, ["policy.revision=v1"])
    assert load(None, ["policy.pretrained=a/b", "policy.revision=v1"]).policy.revision == "v1"
    for settings in (["policy.attention=cudnn"], ["finetune.attention=cudnn", "finetune.dtype=float32"]):
        assert "cudnn is for bfloat16" in sentence(load, None, settings)


def test_the_quickstart_works_without_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("discojax.settings._CLONE", tmp_path)
    assert load() == load("quickstart") == Config()
    sentence(load, "another")


def test_scalars_are_read_as_yaml_1_2_does() -> None:
    # YAML 1.1 reads 3e-3 as text, `no` as false, 2026-11-23 as a date and 1:30 as 90.
    for text in ("no", "on", "2026-11-23"):
        assert load(None, [f"run.name={text}"]).run.name == text
    assert load(None, ["run.directory=1:30"]).run.directory == "1:30"
    assert load(None, ["sft.learning_rate=3e-3"]).sft.learning_rate == 3e-3
    assert load(None, ["sft.steps=1_000"]).sft.steps == 1000


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


@dataclass(frozen=True)
class Stage:
    seeds: Annotated[int, Range(least=1)]
    name: str = "x"


@dataclass(frozen=True)
class Everything:
    flag: bool = False
    colour: Colour = Colour.RED
    maybe: int | None = None
    either: Literal["a", 1] = "a"
    text: str = ""
    pair: tuple[int, str] = (1, "x")
    nested: tuple[tuple[float, ...], ...] = ()
    stages: tuple[Stage, ...] = ()


@given(
    st.builds(
        Everything,
        flag=st.booleans(),
        colour=st.sampled_from(Colour),
        maybe=st.none() | st.integers(-(2**63), 2**63),
        either=st.sampled_from(["a", 1]),
        text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
        pair=st.tuples(st.integers(-9, 9), st.text("0123456789e.-+_:nullyesofftrue~ #'\"")),
        nested=st.lists(st.lists(st.floats(-1e300, 1e300), max_size=3).map(tuple), max_size=3).map(tuple),
        stages=st.lists(st.builds(Stage, st.integers(1, 9), st.text("ab:"))).map(tuple),
    )
)
def test_dump_reads_back_equal(value: Everything) -> None:
    assert parse(Everything, dump(value)) == value


def test_dump_of_a_changed_config_reads_back_equal(tmp_path: Path) -> None:
    config = load(None, ["run.name=2026-11-23", "search.betas=[1e-5]", "population.mesh.data=2"])
    (tmp_path / "config.yaml").write_text(dump(config))
    assert load(tmp_path / "config.yaml") == config != Config()


def test_enum_optional_and_literal_are_checked() -> None:
    value = parse(Everything, "{colour: GREEN, maybe: 3, either: 1, flag: true, pair: [2, y]}")
    assert value == Everything(True, Colour.GREEN, 3, 1, "", (2, "y"))
    assert parse(Everything, "", ["maybe=null"]).maybe is None
    assert "one of 'RED', 'GREEN'" in sentence(parse, Everything, "colour: GREN")
    assert "Did you mean 'GREEN'?" in sentence(parse, Everything, "colour: GREN")
    assert "a whole number or null, got 'x'" in sentence(parse, Everything, "maybe: x")
    assert "got true" in sentence(parse, Everything, "either: true")  # True == 1
    assert "flag must be true or false, got 1" in sentence(parse, Everything, "flag: 1")
    assert "a list of 2" in sentence(parse, Everything, "pair: [1]")


def test_dataclasses_can_stand_in_a_list() -> None:
    value = parse(Everything, "stages: [{seeds: 2}, {seeds: 3, name: y}]")
    assert value.stages == (Stage(2), Stage(3, "y"))
    for wrong in ("[{name: y}]", "[{seeds: 0}]", "[{seeds: 1, more: 2}]", "[3]", "{seeds: 1}"):
        text = sentence(parse, Everything, f"stages: {wrong}")
        assert "stages must be a list with each item {seeds: a whole number, at least 1; name: text}" in text


def test_a_range_says_itself() -> None:
    assert str(Range(above=0, most=1)) == "above 0 and at most 1"
    assert 0 not in Range(above=0) and 1 in Range(above=0, most=1) and float("nan") not in Range()


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.seed = 3  # type: ignore[misc]
    assert hash(Config()) == hash(load()) and Evaluation() == Config().evaluation
    assert Population().mesh.lane == 0
