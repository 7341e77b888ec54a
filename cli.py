"""`sigma` in a checkout, as `python -m cli`; the command itself is in pipelines/commands."""

from pipelines.commands.app import app as app
from pipelines.commands.app import main

if __name__ == "__main__":
    main()
