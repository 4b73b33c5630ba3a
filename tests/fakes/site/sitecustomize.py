"""Python imports this at its start where a test has put its folder on PYTHONPATH: the fakes of the parent, in a child."""

import os

if "FAKE_POWERCAP" in os.environ or "FAKE_CLOCK" in os.environ:
    from fakes import in_children

    in_children.install()
