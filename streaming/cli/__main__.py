"""`python -m streaming.cli`: the same as the command `streamingt2v`."""

from streaming.cli import main

if __name__ == "__main__":
    main()
