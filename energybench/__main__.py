"""`python -m energybench`."""

from energybench.cli import main

if __name__ == "__main__":
    main()
