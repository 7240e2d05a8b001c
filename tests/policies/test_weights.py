import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from discojax.errors import UserError
from discojax.policies import weights


@pytest.fixture
def params(make_policy):
    return nnx.split(make_policy(0, layers=2))[1]


@pytest.fixture
def file(params, tmp_path):
    path = tmp_path / "policy.safetensors"
    weights.save(params, path)
    return path


def test_what_is_saved_is_loaded(params, file):
    loaded = weights.load(jax.eval_shape(lambda: params), file)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_tensors_have_the_modules_own_names(file):
    names = set(load_file(file))
    assert {"embedding.embedding", "blocks.0.mlp.up.kernel", "blocks.1.attention.query.kernel"} <= names


def test_any_tree_dtype_and_shape_comes_back(tmp_path):
    tree = {
        "scalar": jnp.float32(3.0),
        "low": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "nested": [np.arange(4), np.asarray(np.arange(6.0).reshape(2, 3).T)],
    }
    weights.save(tree, tmp_path / "tree.safetensors")
    loaded = weights.load(tree, tmp_path / "tree.safetensors")
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def change(file, **tensors):
    kept = {name: x for name, x in (load_file(file) | tensors).items() if x is not None}
    save_file(kept, file)


def test_a_missing_tensor_is_named(params, file):
    change(file, **{"norm.scale": None})
    with pytest.raises(UserError, match="no tensor 'norm.scale'"):
        weights.load(params, file)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(params, file):
    change(file, **{"norm.scale": np.ones(17, np.float32)})
    with pytest.raises(UserError, match=r"'norm.scale' in .* is float32 \[17\]; .* float32 \[16\]"):
        weights.load(params, file)


def test_a_tensor_of_another_dtype_is_named_with_both_dtypes(params, file):
    change(file, **{"norm.scale": np.ones(16, np.float16)})
    with pytest.raises(UserError, match=r"'norm.scale' in .* is float16 \[16\]; .* float32 \[16\]"):
        weights.load(params, file)


@pytest.mark.parametrize("content", [None, b"", b"not weights at all"])
def test_a_file_that_is_none_is_named(params, tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="weights.safetensors is not a readable safetensors file"):
        weights.load(params, path)
