"""What builds the site of the documentation from docs/ and the docstrings, for mkdocs.yml: `make docs`."""
