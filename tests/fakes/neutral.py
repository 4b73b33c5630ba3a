"""A neutral machine: whatever this one is, every test and every process that a test starts sees the same.

    sensors       none: no powercap, no power events, no hwmon, no card on any bus, no NVIDIA driver, no CUDA: /sys is a
                  folder that is not there; a test plugs its own (`fakes.nvml`, `fakes.powercap`, `fakes.hwmon`)
    environment   what KEPT names, and nothing else: no terminal's width or colour, no locale, no build server, no
                  threads, nothing of ours; a home folder of its own; UTC; git without settings
    process       UTF-8 by default, umask 022, the signals that a background job ignores heard again

`settle()` makes it so, once and for the whole process, before anything reads it: fixtures of every scope, subprocesses
and workers of pytest-xdist included. What a test wants to be otherwise it sets itself. What cannot be hidden from a
running process is the encoding of its files' names, its cores and its user.
"""

from __future__ import annotations

import atexit
import contextlib
import locale
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTLED: dict[str, str] = {}  # the environment before any library said what it wants of others
OUTSIDE: dict[str, str] = {}  # and as it was found: for who has to see this machine as it is, as `make gpu` does
PLACE = "NEUTRAL_MACHINE"  # the folder of a machine that is settled already: a worker's, from its controller
DRIVERS = ("libnvidia-ml.so.1", "libcuda.so.1")

# What a process needs to start at all, to be traced, and to fetch packages; and what tells the tests what to do.
KEPT = {
    "PATH",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "TEMP",
    "TMP",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LOCPATH",
    "CC",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "IN_NIX_SHELL",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
}
KEPT_PREFIXES = (
    "PYTEST_CURRENT_TEST",
    "PYTEST_XDIST_",
    "PYTEST_VERSION",
    "COVERAGE_",
    "COV_CORE_",
    "HYPOTHESIS_",
    "PIP_",
    "UV_",
    "NIX_",
    "ENERGYBENCH_FUZZ_",
)
KEPT_ENDINGS = ("_proxy", "_PROXY")


def kept(name: str) -> bool:
    return name in KEPT or name.startswith(KEPT_PREFIXES) or name.endswith(KEPT_ENDINGS)


def neutral(environment: Mapping[str, str], place: Path) -> dict[str, str]:
    """The environment of a neutral machine whose folder is `place`, made of any other."""
    found = {name: value for name, value in environment.items() if kept(name)}
    libraries = [str(place / "no-driver"), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
    for file in (Path("~/.config/pip/pip.conf"), Path("~/.pip/pip.conf")):  # where packages come from
        path = Path(environment.get("HOME", "/nonexistent"), *file.parts[1:])
        if "PIP_CONFIG_FILE" not in found and os.access(path, os.R_OK):
            found["PIP_CONFIG_FILE"] = str(path)
    return found | {
        PLACE: str(place),
        "HOME": str(place / "home"),
        "TZ": "UTC",
        "ENERGYBENCH_SYSFS": str(place / "no-sys"),
        "ENERGYBENCH_PROC": str(place / "no-proc"),  # nobody else computes here or meters
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(place / "gitconfig"),
        "HF_HUB_OFFLINE": "1",
        "KERAS_BACKEND": "torch",  # read when they are imported
    }


def settle() -> None:
    """To be called before torch is imported. A second call changes nothing."""
    OUTSIDE.update({} if OUTSIDE else os.environ)
    inherited = os.environ.get(PLACE, "")
    if "PYTEST_XDIST_WORKER" in os.environ and Path(inherited, "no-driver").is_dir():
        place = Path(inherited)  # its controller has made it, and removes it
    else:
        place = _make()
        environment = neutral(os.environ, place)
        if _elsewhere(environment):  # installed from another checkout, or not at all
            environment["PYTHONPATH"] = str(ROOT)
        os.environ.clear()
        os.environ.update(environment)
    SETTLED.update(os.environ)
    _forget_the_terminal()
    for name in ("C.UTF-8", "C.utf8", "en_US.UTF-8"):  # what files and pipes are read as, unless one says otherwise
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            break
    time.tzset()
    os.umask(0o022)
    _hear_signals()
    _hide_driver()
    _hide_cards()


def forget() -> None:
    """What libraries have put into the environment since, for one another: a test begins with what was settled."""
    for name in os.environ.keys() - SETTLED.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update({name: value for name, value in SETTLED.items() if name not in os.environ})


def warn_as_usual() -> None:
    """To be called when pytest is configured, which puts back what filters there were before."""
    if sys.warnoptions:  # of PYTHONWARNINGS, which could make an error of a library's warning
        sys.warnoptions.clear()
        warnings.resetwarnings()
        for kind in (ResourceWarning, ImportWarning, PendingDeprecationWarning):  # as Python does
            warnings.simplefilter("ignore", kind)


def _make() -> Path:
    place = Path(tempfile.mkdtemp(prefix="neutral-machine-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a fork of ours ends as well
            shutil.rmtree(place, ignore_errors=True)

    atexit.register(remove)
    for folder in ("home", "no-driver"):
        (place / folder).mkdir()
    (place / "gitconfig").write_text("[safe]\n\tdirectory = *\n", encoding="ascii")  # whoever has checked this tree out
    for name in DRIVERS:  # found before the system's, and no library: as if there were none
        (place / "no-driver" / name).touch()
    return place


def _forget_the_terminal() -> None:
    """readline tells its size to whatever is started, past os.environ, as soon as anything imports it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    for name in ("COLUMNS", "LINES"):
        os.unsetenv(name)


def _elsewhere(environment: Mapping[str, str]) -> bool:
    """Whether a process in another folder would import another energybench than this tree's."""
    code = "import importlib.util as u; print(getattr(u.find_spec('energybench'), 'origin', ''))"
    asked = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, check=True)
    return Path(os.fsdecode(asked.stdout.rstrip(b"\n"))).resolve().parent.parent != ROOT


def _hear_signals() -> None:
    """A job in the background is started deaf to Ctrl-C, and nohup's to a hangup; its children would inherit that.

    A handler that does nothing keeps us as deaf, but is not inherited by what we start.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python itself ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            heard = {signal.SIGINT: signal.default_int_handler, signal.SIGCHLD: signal.SIG_DFL}
            signal.signal(number, heard.get(number, lambda *_: None))
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _hide_driver() -> None:
    """From this process, whose loader knows LD_LIBRARY_PATH only as it was at its start."""
    import pynvml

    load = pynvml.CDLL

    def without_driver(name: str, *arguments: object, **options: object) -> object:
        if name == DRIVERS[0]:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return load(name, *arguments, **options)

    pynvml.CDLL = without_driver


def _hide_cards() -> None:
    """CUDA reads which cards it may see when it starts, so it starts without one; then tests may say otherwise."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.cuda.is_available()
    del os.environ["CUDA_VISIBLE_DEVICES"]
