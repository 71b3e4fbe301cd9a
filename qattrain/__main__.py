"""`python -m qattrain` is `qattrain`."""

from qattrain.cli import main

if __name__ == "__main__":
    main()
