"""`python -m policyd` runs the command `policyd`."""

from policyd.cli import main

if __name__ == "__main__":
    main()
