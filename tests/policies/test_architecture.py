import dataclasses

import pytest

from discojax.errors import UserError
from discojax.policies.architecture import DecoderConfig, Rope


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "rmss"}, r"norm='rmss' is none of rms, layer. Did you mean 'rms'\?"),
        ({"remat": "all"}, "remat='all' is none of none, dots, block"),
        ({"heads": 3}, "width 128 is not a multiple of 3 heads: give head_dim"),
        ({"kv_heads": 3}, "4 heads cannot share 3 kv_heads evenly"),
        ({"positions": "rotary", "head_dim": 5}, "head_dim 5 must be even"),
        ({"pattern": ("local",)}, "Local layers need a window of at least 1 token, not None"),
        ({"pattern": ("near",), "window": 2}, "is made of 'local' and 'global'"),
        ({"pattern": ()}, "is made of 'local' and 'global'"),
    ],
)
def test_fields_that_make_no_decoder_are_told(fields, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig(61, **fields)


def test_an_unknown_kind_of_rotary_positions_is_told():
    with pytest.raises(UserError, match=r"kind='llama' is none of .* Did you mean 'llama3'\?"):
        Rope(kind="llama")


def test_a_pattern_is_repeated_over_the_layers():
    config = DecoderConfig(61, layers=5, window=2, pattern=("local", "local", "global"))
    assert config.local_layers == (True, True, False, True, True)


def test_what_is_not_said_follows_from_the_rest():
    config = DecoderConfig(61, width=64, heads=8)
    assert (config.key_heads, config.head_size, config.mlp_size) == (8, 8, 256)
    config = dataclasses.replace(config, kv_heads=2, head_dim=16, mlp_width=100)
    assert (config.key_heads, config.head_size, config.mlp_size) == (2, 16, 100)


def test_a_config_is_hashable_as_a_static_part_of_a_module_must_be():
    assert hash(DecoderConfig(61, rope=Rope(5e5))) != hash(DecoderConfig(61))
