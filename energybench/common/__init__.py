"""What every room may use: errors, units, limits on strangers' files, hashing, writing whole files, processes.

It imports no other room and no torch (`torchvision_shim.py` imports it when asked).
Start with `errors.py`, which holds how everything that goes wrong is told.
"""
