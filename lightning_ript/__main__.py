"""`python -m lightning_ript`."""

from lightning_ript.cli import main

if __name__ == "__main__":
    main()
