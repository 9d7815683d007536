"""`python -m embedforge` is the console script."""

from embedforge.cli import main

if __name__ == "__main__":
    main()
