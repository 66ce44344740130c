"""Sphinx: pages in Markdown, the API from docstrings."""

import ensdiff

project = "ensdiff"
author = "the ensdiff authors"
release = version = ensdiff.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "results/*"]  # the results are parts of one page
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"ensdiff {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes are in the docstrings; jaxtyping's own signatures are shown as written
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"  # docstrings put names between single backquotes
