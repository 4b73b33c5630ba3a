"""The command line: verbs, their flags, what they print, and exit codes.

It may import every room, and no room imports it; each verb imports what it needs when it is called.
Start with `command_line.py`: its list of verbs names the files that hold them.
"""

from energybench.cli.command_line import app, main

__all__ = ["app", "main"]
