"""How Sphinx builds these pages: `sphinx-build -W -b html docs docs/_build`."""

import shutil
from pathlib import Path

from discojax import __version__

# Sphinx knows only what lies below this folder.
_here = Path(__file__).resolve().parent
shutil.rmtree(_here / "notebooks", ignore_errors=True)
shutil.copytree(_here.parent / "notebooks", _here / "notebooks", ignore=shutil.ignore_patterns(".*"))

project = "discojax"
author = "the discojax authors"
copyright = "the discojax authors; Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",  # Markdown, and the notebooks with the outputs that they were committed with
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/docs/test_notebooks.py runs them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute is described where the class is, and once

default_role = "code"  # in docstrings `name` is code
suppress_warnings = ["ref.python"]  # the axes in a jaxtyping annotation, such as " batch", name no class

html_theme = "sphinx_book_theme"
html_title = "discojax"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
