"""`make strange`: the tests on a strange machine. What a test expects must hold here as on any other.

    python tests/strange.py [arguments of pytest]        of everything but tests/perf, by default

As root everything is made strange, in a mount namespace of its own, so that nothing outside it changes; what cannot be
made strange is told, a line each, and the tests run all the same. Nothing is left behind.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
NOBODY = 65534
INSIDE = "STRANGE_MACHINE"  # the folder of the strange machine, in the process that becomes pytest
PLAIN = "STRANGE_PLAIN"  # set there where that has no namespace of its own
SYS = Path("/sys")
EVENTS, POWERCAP = SYS / "bus/event_source/devices", SYS / "class/powercap"
CACHE = Path("/etc/ld.so.cache")
PROCESSOR = "Strange Processor 9000 @ 0.5 GHz"
ALL = ["-m", "not perf and not cluster"]

ENVIRONMENT = {
    "TZ": "STRANGE-13:37",
    "COLUMNS": "40",
    "LINES": "5",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "FORCE_COLOR": "1",
    "CLICOLOR_FORCE": "1",
    "PY_COLORS": "0",
    "TTY_COMPATIBLE": "1",
    "TTY_INTERACTIVE": "1",
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "GITHUB_STEP_SUMMARY": "/nonexistent/summary",
    "ENERGYBENCH_DATA": "/nonexistent/data",
    "ENERGYBENCH_WINDOWS": "/nonexistent/windows",
    "ENERGYBENCH_SEED": "13",
    "CUDA_VISIBLE_DEVICES": "0",
    "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    "OMP_NUM_THREADS": "7",
    "MKL_NUM_THREADS": "7",
    "SLURM_JOB_ID": "1",
    "SLURM_MEM_PER_NODE": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "iso-8859-9",
    "PYTHONHASHSEED": "7",
    "XDG_CACHE_HOME": "/nonexistent/cache",
    "MPLBACKEND": "pdf",
    "HF_HOME": "/nonexistent/hf",
    "KERAS_BACKEND": "jax",
    "GIT_AUTHOR_NAME": "",
    "PAGER": "false",
    "POSIXLY_CORRECT": "1",
    "PYTEST_THEME": "nothing",
}
HOME = {
    ".gitconfig": "[commit]\n\tgpgSign = true\n[core]\n\tautocrlf = true\n[user]\n\tuseConfigOnly = true\n",
    ".codecarbon.config": "[codecarbon]\nforce_cpu_power = 1\n",
    ".config/matplotlib/matplotlibrc": "font.size: 40\n",
}


class Cannot(Exception):
    """Why one thing cannot be made strange here."""


def told(what: str, make: Callable[[], str | None]) -> bool:
    """Make one thing strange, and say so, or why not."""
    try:
        detail = make()
    except (Cannot, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None)
        print(f"strange: NOT {what}: {said.decode(errors='replace').strip() if said else error}", flush=True)
        return False
    print(f"strange: {what}{f': {detail}' if detail else ''}", flush=True)
    return True


# ── what it is made of, as files in a folder ──────────────────────────────────────────────────────────────────


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def powercap(place: Path) -> None:
    """One package whose counter moves for as long as `moving` lasts."""
    zone = place / "powercap/intel-rapl:0"
    for name, text in {"name": "package-0", "max_energy_range_uj": "262143328850", "energy_uj": "1"}.items():
        write(zone / name, f"{text}\n")


@contextmanager
def moving(place: Path) -> Iterator[None]:
    """The counter of the strange processor, of 20 W."""
    ended = threading.Event()
    counter = place / "powercap/intel-rapl:0/energy_uj"

    def work() -> None:
        count = 1
        while not ended.wait(0.02):
            count += 400_000
            part = counter.with_name(".part")
            write(part, f"{count}\n")
            os.replace(part, counter)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def events(place: Path) -> None:
    """The events that the kernel has, and a power device that counts cores and not the package."""
    devices = place / "events"
    devices.mkdir()
    for link in EVENTS.iterdir() if EVENTS.is_dir() else ():
        if link.name != "power":
            (devices / link.name).symlink_to(os.readlink(link))
    cores = "events/energy-cores"
    power = {
        "type": "2147483000",
        "cpumask": "0",
        cores: "event=0x01",
        f"{cores}.unit": "Joules",
        f"{cores}.scale": "2.3283064365386962890625e-10",
    }
    for name, text in power.items():
        write(devices / "power" / name, f"{text}\n")


def driver(place: Path) -> None:
    """An NVIDIA driver with one card, and the loader's cache that lists it."""
    from fakes.nvml import FakeGpu, build, script

    folder = place / "driver"
    folder.mkdir()
    write(place / "cards.txt", script([FakeGpu(name="Strange Card")], clock=0.0))
    build(folder, place / "cards.txt")
    (place / "ld.so.conf").write_text(f"{folder}\ninclude /etc/ld.so.conf\n", encoding="utf-8")
    command = ["ldconfig", "-X", "-C", place / "ld.so.cache", "-f", place / "ld.so.conf"]
    # Ours is found by its name alone: it has no soname, so that processes can also load it by its path.
    subprocess.run([*command], check=True, capture_output=True)
    if b"libnvidia-ml.so.1" not in (place / "ld.so.cache").read_bytes():
        raise Cannot("ldconfig does not list the library")


def locale(place: Path) -> str:
    (place / "locale").mkdir()
    command = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", place / "locale/tr_TR"]
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/tr_TR").exists():
        raise Cannot("there are no sources of locales; on Debian: apt-get install locales")
    subprocess.run(command, check=True, capture_output=True)
    os.environ |= {"LOCPATH": str(place / "locale"), "LANG": "tr_TR"}
    return "tr_TR, ISO-8859-9"


def processor(place: Path) -> None:
    kept = [
        f"model name\t: {PROCESSOR}" if line.startswith("model name") else line
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if not line.startswith("flags")
    ]
    write(place / "cpuinfo", "\n".join(kept) + "\n")
    write(place / "loadavg", "64.00 64.00 64.00 9/999 4711\n")


# ── inside the namespace ──────────────────────────────────────────────────────────────────────────────────────


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def mount_powercap(place: Path) -> str:
    if POWERCAP.is_dir():
        mount("--bind", place / "powercap", POWERCAP)
    else:  # nobody can make a folder there: all classes again in a folder of ours, and one more
        classes = place / "class"
        classes.mkdir()
        for each in POWERCAP.parent.iterdir():
            (classes / each.name).mkdir()
        (classes / "powercap").mkdir()
        for each in POWERCAP.parent.iterdir():
            mount("--bind", each, classes / each.name)
        mount("--bind", place / "powercap", classes / "powercap")
        mount("--rbind", classes, POWERCAP.parent)
    return f"{POWERCAP} has a package of 20 W"


def mount_events(place: Path) -> str:
    mount("--bind", place / "events", EVENTS)
    return f"{EVENTS}/power is without energy-pkg"


def mount_driver(place: Path) -> str:
    mount("--bind", place / "ld.so.cache", CACHE)
    return "the loader finds an NVIDIA driver with one card"


def mount_processor(place: Path) -> str:
    for name in ("cpuinfo", "loadavg"):
        mount("--bind", place / name, Path("/proc") / name)
    return f"{PROCESSOR}, load 64"


def hide_processes() -> str:
    mount("-t", "proc", "-o", "hidepid=2", "proc", "/proc")
    return "/proc shows a user his own alone"


def open_ways(place: Path) -> str | None:
    """A folder that only root may enter, such as his home, shows what the tests need and nothing else."""
    needed = {Path(path).resolve() for path in (ROOT, sys.prefix, sys.base_prefix)}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        if barred := next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None):
            closed.setdefault(barred, []).append(path)
    for number, (barred, paths) in enumerate(closed.items()):
        aside = place / f"aside-{number}"
        for path in paths:
            (aside / path.relative_to(barred)).mkdir(parents=True, exist_ok=True)
            mount("--bind", path, aside / path.relative_to(barred))
        mount("--rbind", aside, barred)
    return ", ".join(map(str, closed)) or None


def tree_is_read_only() -> str:
    mount("--bind", ROOT, ROOT)
    mount("-o", "remount,bind,ro", ROOT)
    return str(ROOT)


def one_core() -> str:
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return f"number {core}"


def limits() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    return "256 open files"


def temporary(place: Path) -> str:
    folder = place / "a folder for files that nobody keeps" / ("long" * 12)
    folder.mkdir(parents=True)
    os.chown(folder, NOBODY if not os.getuid() else -1, -1)
    os.environ["TMPDIR"] = str(folder)
    assert len(str(folder)) >= 90
    return f'"{folder}", {len(str(folder))} characters'


def variables(place: Path) -> str:
    home = place / "home"
    for name, text in HOME.items():
        write(home / name, text)
    for file in (".config/pip/pip.conf", ".pip/pip.conf"):  # where packages come from stays known
        if (path := Path(os.environ.get("HOME", "/"), file)).is_file():
            write(home / file, path.read_text(encoding="utf-8"))
    os.environ |= ENVIRONMENT | {"HOME": str(home)}
    return ", ".join(ENVIRONMENT)


def signals() -> str:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    return "SIGINT, SIGHUP and SIGUSR1 are ignored, as in the background and by nohup"


def nobody() -> str:
    """A user who may read the tree and write nowhere but in the folder for temporary files."""
    code = "import energybench, pytest, torch"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        raise Cannot(f"may not read {ROOT} or {sys.prefix}: {said}")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    return f"number {NOBODY}"


def inside(place: Path, arguments: list[str], namespace: bool) -> None:
    """Make it strange and become pytest."""
    if namespace:
        told("a powercap tree", lambda: mount_powercap(place))
        told("a power PMU", lambda: mount_events(place))
        if (place / "ld.so.cache").exists():
            told("a driver", lambda: mount_driver(place))
        told("hidden processes", hide_processes)
        told("a processor", lambda: mount_processor(place))
        told("a way to the interpreter and the tree for every user", lambda: open_ways(place))
        told("a tree that nobody may write to", tree_is_read_only)
    else:
        for what in (
            "a powercap tree in /sys",
            "a power PMU in /sys",
            "hidden processes",
            "a processor",
            "a tree that nobody may write to",
        ):
            print(f"strange: NOT {what}: it takes root and a mount namespace")
        os.environ["ENERGYBENCH_POWERCAP"] = str(place / "powercap")
        if (place / "driver").is_dir():
            os.environ["LD_LIBRARY_PATH"] = str(place / "driver")
            os.environ["FAKE_NVML_SCRIPT"] = str(place / "cards.txt")
        print("strange: instead, variables of the environment name the powercap tree and the driver")
    told("a folder for temporary files", lambda: temporary(place))
    told("a locale", lambda: locale(place))
    told("an environment", lambda: variables(place))
    told("one core", one_core)
    told("limits", limits)
    told("deaf to signals", signals)
    if os.getuid():
        print(f"strange: the user is number {os.getuid()}, who is not root anyway")
    else:
        told("a user who is not root", nobody)
    os.umask(0o077)
    print("strange: umask 077; standard input is closed", flush=True)
    os.close(0)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *ALL, *arguments]
    os.execv(command[0], command)


def main(arguments: list[str]) -> int:
    if place := os.environ.pop(INSIDE, None):
        inside(Path(place), arguments, namespace=not os.environ.pop(PLAIN, ""))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    place = tempfile.mkdtemp(prefix="energybench-strange-", dir="/tmp")
    os.chmod(place, 0o755)
    folder = Path(place)
    try:
        powercap(folder)
        events(folder)
        processor(folder)
        told("the driver is compiled", lambda: driver(folder))
        unshare = ["unshare", "--mount", "--propagation", "private"]
        able = not os.getuid() and shutil.which("unshare") is not None
        able = able and not subprocess.run([*unshare, "true"], capture_output=True).returncode
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        with moving(folder):
            given = os.environ | {INSIDE: place} | ({} if able else {PLAIN: "1"})
            return subprocess.run([*unshare, *command] if able else command, cwd=ROOT, env=given).returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
