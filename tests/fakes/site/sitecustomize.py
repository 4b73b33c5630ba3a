"""Python imports this at its start where its folder is on PYTHONPATH: a test's fakes, in a child (in_children.py)."""

import os

if {"FAKE_POWERCAP", "FAKE_CLOCK", "FAKE_BROKEN"} & set(os.environ):
    from fakes import in_children

    in_children.install()
