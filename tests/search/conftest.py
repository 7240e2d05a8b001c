"""Shared by the tests of the search: the toy laboratory, and few real reviews."""

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import toy`


@pytest.fixture(scope="module")
def few_reviews(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path, None, None]:
    """A file of few reviews, which is read for the package's own as long as this module's tests run."""
    import small

    folder = tmp_path_factory.mktemp("reviews")
    with pytest.MonkeyPatch.context() as patch:
        small.few_reviews(folder, patch)
        yield folder / "reviews.csv"
