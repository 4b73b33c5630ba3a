"""Everything that may go wrong around a run, and what is then done: one table for the tests and for the page.

    python tests/faults.py > docs/what-happens-when.md

Each row is held by a test, which is marked with its key: @fault("disk full"). `test_fault_table.py` sees to it that no
row is without a test, no test without a row, and that the page is what this file prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])
AGAIN = "the same command"


@dataclass(frozen=True)
class Fault:
    """One row.

    happens:   as who sees it would say it
    behaviour: what energybench does
    ends:      its exit code and error code; "" where the run goes on
    then:      what to type
    """

    key: str
    happens: str
    behaviour: str
    ends: str
    then: str = AGAIN


SECTIONS: dict[str, tuple[Fault, ...]] = {
    "A run is stopped": (
        Fault(
            "ctrl-c",
            "Ctrl-C",
            "The trial in progress is ended with everything it started. Finished trials stay; `run.json` says "
            "`interrupted`.",
            "130",
        ),
        Fault(
            "interrupted turns",
            "Ctrl-C while trials take turns",
            "The one whose turn it is and those that rest, stopped, are all ended. None of the group has a record yet, "
            "and the group is repeated.",
            "130",
        ),
        Fault(
            "sigterm",
            "SIGTERM from a scheduler, to the run or to all its processes",
            "As Ctrl-C. A file that is being written is finished first.",
            "130",
        ),
        Fault(
            "hangup",
            "The terminal is closed (SIGHUP)",
            "As Ctrl-C, unless the run was started with `nohup`, which it obeys.",
            "130",
        ),
        Fault(
            "announced",
            "SIGUSR1, SIGUSR2 or SIGXCPU: a scheduler announces the end of its job",
            "As Ctrl-C, and the line says by which signal.",
            "130",
        ),
        Fault("interrupted check", "Ctrl-C while the suite is checked", "Nothing is left on disk.", "130"),
        Fault(
            "kill run",
            "`kill -9` of the run, at any moment: in a trial, a write, a rename, the report",
            "Its trial ends with it. Every file is whole or absent. The next start removes what was half "
            "written and runs what is missing; only a baseline, and the method of a control that is missing, is run "
            "again, since a pair must share an invocation.",
            "by signal 9",
        ),
        Fault(
            "kill trial",
            "`kill -9` of a trial",
            "It is recorded as `out_of_memory`, as the kernel would have ended it, and the run goes on.",
            "3",
            "nothing; to repeat it, move its record away first",
        ),
        Fault(
            "kill both",
            "`kill -9` of both, of the whole process group, or of a helper process between them",
            "As above: whoever is left ends the rest.",
            "by signal 9",
        ),
        Fault(
            "kill while set",
            "`kill -9` of a trial, of the run, or of the process that keeps the card's settings, while a method has "
            "them set",
            "The card is [as it was](measurement.md#a-card-that-a-method-sets).",
            "as above",
            "nothing",
        ),
        Fault(
            "until finished",
            "A run is killed again and again",
            "A hundred kills later each cell of each block stands once beside its baseline, and the report is "
            "what its records give.",
            "",
        ),
    ),
    "A measured command is stopped": (
        Fault(
            "signal measured",
            "A signal to `energybench measure -- COMMAND`: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 … to it alone, to its "
            "group, to every process of the job",
            "The command gets it once and decides. When it ends, by itself or by the signal, its line is printed and "
            "`-o` is written. `kill -9` ends both, and nothing is told.",
            "the command's, 128 + N for signal N",
            "",
        ),
        Fault(
            "terminal measured",
            "The terminal of `energybench measure` is closed",
            "The command gets SIGHUP, as above; there is nobody to print for, and `-o` is written.",
            "the command's",
            "",
        ),
        Fault(
            "signal compared",
            "Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 to `energybench measure --vs`",
            "The pair in progress is ended with everything it started. Finished pairs are shown and written, without "
            "a verdict.",
            "128 + N for signal N: 130 after Ctrl-C",
            "the same command, for all pairs again",
        ),
        Fault(
            "signal window",
            "SIGTERM, SIGHUP, SIGUSR1 … ends a script inside `with energybench.measure()`",
            "Its windows are closed and marked with the signal's name, the line is printed, the record written; then "
            "the script ends as it would have. One that handles the signal is left to do so.",
            "by that signal",
            "",
        ),
    ),
    "Two runs, or a run that changed": (
        Fault(
            "two runs",
            "A second run of the same suite while the first one works",
            "It refuses; the first is not disturbed.",
            "2, E604",
            "wait, or `--new`, or `--out`",
        ),
        Fault(
            "changed method",
            "A method's file was changed since an unfinished run",
            "The two are never mixed. What changed is said. At a terminal you are asked whether a new run "
            "shall begin beside the old one; a job in a queue, which nobody can answer for, begins one and "
            "says so.",
            "2, E623 if the answer is no",
            "put the file back to continue, or `--new`",
        ),
        Fault(
            "changed settings",
            "`--out` names a run of other settings, methods or versions",
            "It refuses and says what differs.",
            "2, E603",
            "another `--out`",
        ),
        Fault(
            "no run.json",
            "`--out` names records without their `run.json`",
            "It refuses: nobody knows what made them.",
            "2, E624",
            "put `run.json` back, or another `--out`",
        ),
    ),
    "Blocks of one run as jobs of a cluster": (
        Fault(
            "shard at work",
            "`run --block 3` in a folder where another process works",
            "It leaves it to that one, and ends at once. Other blocks have folders of their own.",
            "75, E604",
            "nothing, or the same command later",
        ),
        Fault(
            "shard interrupted",
            "A job of one block is ended: SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2",
            "Its trials that are whole stay; the plan and other blocks are not touched.",
            "130",
        ),
        Fault(
            "another device",
            "A block goes on on another card, or another host's processor, than it was begun on",
            "It starts anew with its baseline. What it had is kept in `superseded/`, counts no more, and is "
            "told. Blocks "
            "that are whole stay as they are.",
            "",
            "",
        ),
        Fault(
            "shard of another plan",
            "A block is asked for with settings, methods or versions that are not the plan's, or in a folder of other "
            "blocks or of another plan; a run of all blocks in a folder with shards",
            "It is refused and says what differs; nothing is written.",
            "2, E603, E629, E625",
            "another `--out`",
        ),
        Fault(
            "no flock",
            "The file system has no `flock` (Lustre, some NFS): ENOLCK, ENOSYS, EOPNOTSUPP",
            "The lock is a file, `.lock-owner`, that is created once and says which process holds it.",
            "",
            "",
        ),
        Fault(
            "stale lock",
            "There, a process was killed and left its lock",
            "On the same host it is seen that it has ended, also where its number is another process's by now: "
            "the lock "
            "is taken over, and told.",
            "",
            "",
        ),
        Fault(
            "lock elsewhere",
            "There, the lock is of a process on another host",
            "It is never taken, since nobody here knows whether that one lives. The message names host, process "
            "and time.",
            "2, E604; 75 with `--block`",
            "wait; or the `rm` that is printed, once you know that it has ended",
        ),
        Fault(
            "shared node",
            "A job of Slurm's has only some CPUs of its node, or another energybench meters the node already",
            "RAPL, and what else sees the whole node, is not read: it would count the others' joules. The record "
            "says why.",
            "",
            "`sbatch --exclusive`, or `ENERGYBENCH_EXCLUSIVE=1` where nobody else works there",
        ),
    ),
    "Its folder is moved, linked or mixed with another while it works": (
        Fault(
            "folder renamed",
            "The run's folder is renamed or moved",
            "It is held by its handle: the trial in progress is kept in it, wherever it is. Then the run ends and "
            "says where it is now. Nothing is made at its old place, and no trial has failed.",
            "2, E626",
            "the `mv` that is printed and the same command, or it with `--out` and the new name",
        ),
        Fault(
            "folder replaced",
            "Another folder is put in its place",
            "As above; the other one is neither written nor read.",
            "2, E626",
            "put it back, then the same command",
        ),
        Fault(
            "folder deleted",
            "The run's folder is deleted",
            "The run ends and says so. The folder is not made again.",
            "2, E626",
            "the same command, which starts anew",
        ),
        Fault(
            "second run in it",
            "A second run is started in a folder that was moved while the first one works in it",
            "It refuses: the lock goes with the folder, whatever its name is.",
            "2, E604",
            "wait, or another `--out`",
        ),
        Fault(
            "record deleted",
            "A record is deleted",
            "The run is not finished: it is finished only where each planned cell has its record in each block. What "
            "is missing is named.",
            "2, E627",
        ),
        Fault(
            "linked part",
            "`records`, `logs`, `figures` or another part of the folder becomes a link",
            "No link below a run's folder is followed: nothing is read, written or removed where it leads.",
            "2, E612",
            "put the folder itself there, then the same command",
        ),
        Fault(
            "hard linked log",
            "A log is a second name of a file elsewhere (a hard link)",
            "Nothing is appended to it.",
            "2, E612",
            "take it away, then the same command",
        ),
        Fault(
            "record of another run",
            "A record, or the `run.json`, of another run of the same suite is put in, now or later",
            "Each record carries its run's identity. One of another run is named, and nothing is reported, compared, "
            "exported or run with it. Of records of earlier versions their times and digests decide.",
            "2, E625",
            "the `mv` that is printed, then the same command",
        ),
    ),
    "What it would write over is somebody else's": (
        Fault(
            "foreign page",
            "The run's folder holds a `report.md` that is not ours",
            "Nothing is run, and it is left as it is.",
            "2, E632",
            "move it away, or another `--out`",
        ),
        Fault(
            "foreign output",
            "`-o`, `--to`, `--accept`, `--markdown` or `record=` names a file that is there and is no earlier output "
            "of the same kind; or `run.json`, a record, or anything in a part of a run's folder",
            "It is refused before anything is measured or computed, and left as it is.",
            "2, E632",
            "another file",
        ),
    ),
    "The disk and the clock": (
        Fault(
            "disk full",
            "The disk or the quota is full",
            "The run ends and says where. A trial that could not write its record is not a failed trial: it "
            "is run again. Everything finished stays.",
            "2, E620",
            "make room, then the same command",
        ),
        Fault(
            "no temporary folder",
            "There is no room for temporary files, in `TMPDIR` or anywhere",
            "The run does not begin.",
            "2, E620",
            "make room, or set `TMPDIR`",
        ),
        Fault(
            "output full",
            "The table is printed to a file on a full disk",
            "It is said. The run's own files are written before.",
            "2, E620",
            "`energybench report FOLDER`",
        ),
        Fault(
            "read-only folder", "The folder cannot be written", "The run does not begin.", "2, E605", "another `--out`"
        ),
        Fault(
            "read-only meanwhile",
            "The folder becomes read-only while a run works",
            "The run ends as on a full disk.",
            "2, E620",
            "make it writable, then the same command",
        ),
        Fault(
            "clock step",
            "The clock is set back, even again and again in a trial",
            "Durations and energies come from the monotonic clock. A new folder is named after all others, so "
            "that the newest stays the one that is continued.",
            "",
        ),
    ),
    "Where it is started, and what is printed": (
        Fault(
            "planted module",
            "A file of the current folder, or beside the suite, has the name of a module (`random.py`) or of a program "
            "(`lscpu`)",
            "It does not run, in no process of ours. A method's or a model's file that the suite names does, and finds "
            "its neighbours after all that is installed.",
            "",
            "–",
        ),
        Fault(
            "no reader",
            "Whoever read the output has gone: `| head -1`",
            "The work goes on and is finished. The rest is not printed, and a note says so.",
            "its own",
            "–",
        ),
        Fault(
            "closed output",
            "Standard output is closed: `>&-`",
            "A run goes on, and a note says that nothing was printed. A verb that only prints has done nothing.",
            "2, E620 for a verb that only prints",
            "the same command, with an output",
        ),
        Fault(
            "plain signs",
            "The encoding of the terminal or of the log has few signs: ASCII, ISO 8859",
            "− is printed as -, × as x, an accented letter without its accent.",
            "",
            "–",
        ),
        Fault(
            "strict Python",
            "Warnings are errors: `PYTHONWARNINGS=error`, `-W error`",
            "Not in processes of ours, since libraries warn of what is no error. A suite's commands get the variable.",
            "",
            "–",
        ),
        Fault(
            "workflow command",
            "A name, a path or an error's text holds a command of a build server: `::error`, `##[group]`",
            "A space is put into it wherever it is printed, so that the server reads none.",
            "",
            "–",
        ),
        Fault(
            "endless suite",
            "A suite asks for what nobody can mean: a thousand million blocks, 3,000 layers",
            "It is refused from its text, before anything is built.",
            "2, E207",
            "what is printed",
        ),
        Fault(
            "no proc",
            "`/proc` is empty or hidden",
            "Runs go on; what is read there (the processor's name, other loads) is not known.",
            "",
            "–",
        ),
        Fault(
            "scratch race",
            "Two runs start at once, and one removes what killed runs left",
            "Each keeps its own temporary folder.",
            "",
            "–",
        ),
    ),
    "A file was damaged": (
        Fault(
            "cut record",
            "A record is cut short",
            "It is named, and nothing is reported or run until it is mended or out of the way; then its trial "
            "is run again.",
            "2, E601",
            "the `mv` that is printed, then the same command",
        ),
        Fault(
            "edited record",
            "A record or `run.json` was edited",
            "Its seal does not hold: it is named and not read. Another layout of the same content is no edit. "
            "A record without a seal, of an earlier version, is read, and nothing is claimed of it.",
            "2, E621",
            "the original back, or the `mv` that is printed",
        ),
        Fault(
            "cut run.json",
            "`run.json` is cut short",
            "With `--out` it refuses; otherwise it says so, leaves the folder as it is and begins a new one.",
            "2, E601 with `--out`",
            "a copy of it back, or `--new`",
        ),
        Fault(
            "other schema",
            "A record is of a newer or an older schema",
            "It is named with its schema.",
            "2, E622",
            "`pip install -U energybench`, or the version that wrote it",
        ),
        Fault(
            "half a file",
            "A file was half written when a run was killed",
            "Its name says so, it is never read, and the next start removes it.",
            "",
        ),
    ),
    "A trial misbehaves": (
        Fault(
            "out of memory",
            "It runs out of memory",
            "Recorded as `out_of_memory` with the reason; the run goes on.",
            "3",
            "nothing; smaller batches, say",
        ),
        Fault(
            "ignores sigterm",
            "It ignores SIGTERM or hangs",
            "At the suite's `limit` it is killed with everything it started and recorded as `timeout`.",
            "3",
            "a longer `limit`, or another method",
        ),
        Fault(
            "strays",
            "It leaves processes behind: data workers, daemons, processes that fork faster than one can look",
            "None survives its end, whatever session or group they moved to.",
            "",
            "",
        ),
        Fault(
            "raises",
            "It raises, exits, diverges, or its process dies",
            "Recorded with its reason and, where there is one, its line; its output is kept in `logs/`. The "
            "others go on.",
            "3",
            "nothing; the report names each failure",
        ),
        Fault(
            "one of a group",
            "It does any of this while it takes turns with others",
            "Its turns are over. The others of its group train on, with the same weights to the bit as alone; its "
            "limit counts its own seconds.",
            "3",
            "nothing; the report names each failure",
        ),
        Fault(
            "a rank ends",
            "One of its ranks raises or is killed, where it trains on several devices",
            "Recorded with the reason of the rank that failed first. The others end with it, waiting or not.",
            "3",
            "nothing; the report names each failure",
        ),
        Fault(
            "ranks apart",
            "Its ranks end with different weights: a method decided something by the samples of one of them",
            "The trial is invalid, and says which ranks.",
            "3",
            "`[trials] devices = 1`, or a method that asks all ranks",
        ),
    ),
    "A sensor is wrong, or is not there": (
        Fault(
            "sensor jumps",
            "A counter jumps, or a power is more than its part can draw",
            "There is no figure, and the reason says what was said and what is possible. The trial is invalid.",
            "3",
            "nothing; the others stand",
        ),
        Fault(
            "sensor lost",
            "A card is lost or its counter restarts in a trial",
            "There is no figure and no partial total. The trial is invalid.",
            "3",
            "nothing; the others stand",
        ),
        Fault(
            "suspended",
            "The machine sleeps in a trial",
            "It is seen (boot time against monotonic time) and named. Counters have no figure of that trial.",
            "3 with a sensor",
            "nothing; let no machine sleep that measures",
        ),
        Fault(
            "channels contradict",
            "A card's counter and its power cannot both be true",
            "The trials are flagged `channels_contradict` and enter no comparison.",
            "3",
            "`energybench doctor`",
        ),
        Fault(
            "card refused",
            "One card cannot be opened: another control group's, off the bus, or a driver that was updated",
            "The others are metered. It is named with what helps in the line, the record, the report and doctor.",
            "",
            "what is printed",
        ),
        Fault(
            "required",
            '`energy = "require"`, and what trains is not what is metered, or answers nothing',
            "Nothing is run.",
            "5, E501",
            'what is printed, or `energy = "if available"`',
        ),
        Fault(
            "old driver",
            "The driver is older than a query of ours",
            "The older query is asked; where there is none, that is not known. No training ends for it.",
            "",
            "",
        ),
        Fault(
            "unmetered cards",
            "There are cards of other makers that nothing meters",
            "Every reading and every page says `Not seen: 4 AMD GPUs (amdgpu)`; a saving names whose energy it is.",
            "",
            "",
        ),
        Fault(
            "second tracker",
            "Another tracker of energy, or a busy neighbour, runs meanwhile",
            "The window is flagged `second_tracker` or `other_load`.",
            "",
            "let the machine measure alone",
        ),
    ),
}
FAULTS = {row.key: row for rows in SECTIONS.values() for row in rows}


def fault(key: str) -> Callable[[Test], Test]:
    """Marks the test that holds the row of this key."""
    if key not in FAULTS:
        raise KeyError(f"no such row in faults.py: {key!r}")
    return lambda test: test


PREFACE = """\
# What happens when…

Nothing that is finished is lost, nothing that is half done is read, and the same command continues. This page is
printed from the table that the tests work through (`tests/faults.py`): each row is held by a test that does it.
"""
AFTERWORD = """\
## What cannot be helped

The run, its helper and a trial's guard killed by force at the very same moment leave nobody to end what the trial had
started in sessions of its own. Inside a container, a systemd unit or a scheduler's job the kernel ends those too.

The run and the process that keeps a card's settings killed by force at the very same moment leave the card as a method
has it set, until the driver is unloaded or somebody puts it back: `sudo nvidia-smi -i UUID -pl WATTS`, `-rgc`.

A seal tells an accident, not a deceit: whoever edits a record on purpose can compute its seal again.

A trial that was killed from outside is a finished trial with a reason. To have it again while its run is unfinished,
move its record away; the same command runs it, and its baseline with it.

Kill it yourself, a hundred times: `python tests/run/soak.py --kills 100`.
"""


def page() -> str:
    lines = [PREFACE]
    for title, rows in SECTIONS.items():
        lines += [f"## {title}", "", "| when | energybench | exit | to go on, type |", "|---|---|---|---|"]
        lines += [f"| {r.happens} | {r.behaviour} | {r.ends or '–'} | {r.then or '–'} |" for r in rows]
        lines.append("")
    return "\n".join([*lines, AFTERWORD])


if __name__ == "__main__":
    print(page(), end="")
