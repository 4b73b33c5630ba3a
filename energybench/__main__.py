"""`python -m energybench`."""

from energybench.cli.command_line import main

if __name__ == "__main__":
    main()
