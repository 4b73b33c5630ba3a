"""`make gpu-wheels`: what a machine with a card, torch and the usual scientific packages lacks, as wheels in a folder.

For Python 3.12, or PYTHON_VERSION, on x86-64 Linux, whatever runs this; at the versions of constraints.txt. No
dependency is fetched that does not stand here, so that nothing takes the place of the machine's own torch and numpy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (  # by energybench itself
    "annotated-types",
    "iopath",
    "fvcore",
    "mlxtend",
    "nvidia-ml-py",
    "portalocker",
    "pycountry",
    "pydantic",
    "pydantic_core",
    "tabulate",
    "termcolor",
    "typing-inspection",
    "typing_extensions",
    "yacs",
)
TESTED = (  # by tests/gpu, and by what of tests/ they stand on
    "hypothesis",
    "iniconfig",
    "packaging",
    "pluggy",
    "py-cpuinfo2",
    "Pygments",
    "pytest",
    "pytest-benchmark",
    "sortedcontainers",
)
COMPARED = (  # CodeCarbon and Zeus, whose loops stand beside ours, and what they import
    "annotated-doc",
    "arrow",
    "Authlib",
    "cffi",
    "codecarbon",
    "cryptography",
    "docstring_parser==0.17.0",
    "joserfc",
    "prometheus_client",
    "prompt_toolkit",
    "py-cpuinfo",
    "pycparser",
    "questionary",
    "RapidFuzz",
    "shellingham",
    "shtab==1.7.2",
    "typeguard==4.4.4",
    "typer",
    "tyro==0.9.31",
    "tzdata",
    "wcwidth",
    "zeus==0.16.0",
)
THERE = (  # what such a machine has beside torch
    "click",
    "httpx",
    "jinja2",
    "joblib",
    "matplotlib",
    "numpy",
    "pandas",
    "pillow",
    "psutil",
    "python-dateutil",
    "pyyaml",
    "requests",
    "rich",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
    "tqdm",
)
BUILT = ("fvcore", "iopath")  # there is no wheel of these; they are Python alone: one built anywhere serves everywhere
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
FOR = ["--only-binary=:all:", "--implementation", "cp"]
QUIET = ["--quiet", "--disable-pip-version-check", "--no-deps"]


def pinned(names: Iterable[str], constraints: str) -> list[str]:
    """Each as NAME==VERSION. Raises ValueError for one that has no version here and none in constraints.txt."""
    versions = dict(line.split("==", 1) for line in constraints.splitlines() if "==" in line and line[0] != "#")
    known = {alike(name): version.strip() for name, version in versions.items()}
    found = [name if "==" in name else f"{name}=={known.get(alike(name), '')}" for name in names]
    if without := [name for name in found if name.endswith("==")]:
        raise ValueError(f"constraints.txt has no version of: {', '.join(without)}")
    return found


def alike(name: str) -> str:
    """A package's name whatever its capitals, dashes and dots."""
    return name.lower().replace("_", "-").replace(".", "-")


def main(folder: str, python: str = "3.12") -> None:
    names = pinned([*NEEDED, *TESTED, *COMPARED], (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    built = [name for name in names if name.split("==")[0] in BUILT]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip"]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for old in Path(folder).glob("*.whl"):  # two versions of one package would stop the installation
        old.unlink()
    fetched = [name for name in names if name not in built]
    subprocess.run(
        [*pip, "download", *QUIET, *FOR, "--python-version", python, *platforms, "--dest", folder, *fetched], check=True
    )
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([*pip, "wheel", *QUIET, "--wheel-dir", place, *built], check=True)
        for wheel in Path(place).glob("*.whl"):
            if not wheel.name.endswith("-none-any.whl"):
                raise SystemExit(f"error: {wheel.name} is of this machine alone")
            (Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
    wheels = sorted(Path(folder).glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.0f} MB, in {folder}: make gpu WHEELS={folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
