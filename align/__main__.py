"""`python -m align COMMAND …`: the console script, where that is not on the path."""

from __future__ import annotations

from align.cli import main

if __name__ == "__main__":
    main()
