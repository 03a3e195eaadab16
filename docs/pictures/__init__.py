"""The pictures of README and the documentation, one module each: `python -m docs.pictures` draws them all."""
