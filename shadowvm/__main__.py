"""`python -m shadowvm` is the `shadowvm` command."""

from .cli.main import entry

if __name__ == "__main__":
    entry()
