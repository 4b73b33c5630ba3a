"""What `energybench.run`, `load`, `measure` and the command line raise, by family.

EnergybenchError           carries every Problem that was found, not the first
├─ FileError        E1xx   files and TOML
├─ SuiteError       E2xx   keys, types and units of a suite
├─ MethodError      E3xx   methods and their stacking
├─ WorkloadError    E4xx   models and data
├─ MeteringError    E5xx   sensors and devices
│  └─ CannotMeasure E501   this machine cannot measure what is required
├─ RunError         E6xx   runs and records
│  └─ CannotWrite   E620   the disk is full, over quota or read-only
└─ UsageError              the command line or the suite is wrong; of any family, or of several at once

They are defined in `common/errors.py`; this is the documented place to import them from.
"""

from energybench.common.errors import (
    CannotMeasure,
    CannotWrite,
    EnergybenchError,
    FileError,
    MeteringError,
    MethodError,
    Problem,
    RunError,
    SuiteError,
    UsageError,
    WorkloadError,
)

__all__ = [
    "CannotMeasure",
    "CannotWrite",
    "EnergybenchError",
    "FileError",
    "MeteringError",
    "MethodError",
    "Problem",
    "RunError",
    "SuiteError",
    "UsageError",
    "WorkloadError",
]
