"""The text of a job's script: it starts our command in the background, hands it the signals that announce the end,
waits for it, and has the job queued again where the command says that the same command goes on.

The script is bash, since a batch job is one; what varies is quoted by `shlex`, so that no name of a file is read as
anything else. What each part ended with is noted beside the run, for whoever collects: squeue forgets after minutes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from energybench.cluster.block_commands import Asked, plan_words, report_words
from energybench.cluster.jobs_file import JOBS
from energybench.records.shards import SHARDS, named

LONGEST_LEAD_S = 120  # before its end a job is told of it

HEAD = r"""#!/bin/bash
# A job of energybench: {what}. Written by `energybench run --on slurm`.
cd -- {place} || exit 1
folder={folder}
told_s={told_s}  # before its end, or up to a minute earlier, the job is told of it
stop= child= interrupted= worst=0
me=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
me=${{me:-${{SLURM_JOB_ID:-}}}}
restarts=${{SLURM_RESTART_COUNT:-0}}
shopt -s nullglob
trap 'interrupted=1 stop=1; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' TERM USR1 USR2
"""
BODY = r"""
say() { printf 'energybench job %s: %s\n' "$me" "$1"; }

# note PART WHY: for whoever collects.
note() { printf '%s %s %s\n' "$2" "$restarts" "$me" >>"$folder/jobs/$1.ended"; }

# records FOLDER: how many cells have a trial there; a baseline that each start repeats is one.
records() {
  local found=("$1"/records/*.json)
  printf '%s\n' "${found[@]##*/}" | sed -E 's/^(b[0-9]+)-i[0-9]+-/\1-/' | sort -u | grep -c .
}

# attempt WORDS...: runs them to their end; $code is theirs, however many signals came while they ran.
attempt() {
  "$@" &
  child=$!
  [ -n "$stop" ] && kill -TERM "$child" 2>/dev/null
  while interrupted=; wait "$child"; code=$?; [ -n "$interrupted" ]; do :; done
  [ "$code" -ge 0 ] || code=143  # what bash says of a child that a signal ended while it looked
  child=
}

# pause SECONDS: ends early on a signal.
pause() { sleep "$1" & wait "$!"; }

# ask: Slurm's $state of this job and the seconds that are $left to it; "" and many where it does not say.
ask() {
  local try text='' units=(1 60 3600 86400) parts i
  for try in 1 2 3 4 5; do
    text=$(squeue --noheader --jobs="$me" --format='%T %L' 2>/dev/null) && break
    pause 5
  done
  state=${text%% *} left=999999999
  [[ ${text#* } =~ ^[0-9:-]+$ ]] || return
  IFS=:- read -ra parts <<<"${text#* }"
  left=0
  for ((i = 0; i < ${#parts[@]}; i++)); do left=$((left + 10#${parts[-1 - i]} * ${units[i]:-0})); done
}

# queue_again: whether this job is now queued again. Never one that its user has cancelled, or that Slurm itself has
# queued again: only one that is said to run.
queue_again() {
  local try
  [ "$state" = RUNNING ] || return 1
  for try in 1 2 3 4 5; do
    scontrol requeue "$me" && return 0
    pause 5
  done
  return 1
}

# one PART FOLDER WORDS...: one piece of work, of which FOLDER holds the records.
one() {
  local part=$1 place=$2 before began=$SECONDS waited=0
  shift 2
  before=$(records "$place")
  while :; do
    attempt "$@"
    [ "$code" = 75 ] && [ -z "$stop" ] && [ "$waited" -lt 120 ] || break
    waited=$((waited + 10))      # at work elsewhere: a job that was thought lost may still be ending
    pause 10
  done
  case $code in
    0) return ;;
    3) [ "$part" = report ] || return ;;  # complete: what failed has its record
    75)
      note "$part" elsewhere
      say "$part is at work elsewhere"
      [ "$part" = plan ] && worst=75  # what waits for it must not begin
      return ;;
    130 | 137 | 138 | 140 | 143)
      ask
      if [ "$(records "$place")" -le "$before" ]; then
        # It is told of its end, and had most of its time for this alone: it would have no more of it the next time.
        if [ "$state" = RUNNING ] && [ "$left" -le $((told_s + 65)) ] &&
          [ $((2 * (SECONDS - began))) -ge "$SECONDS" ]; then
          note "$part" time
          say "nothing new of $part ended within the time of the job; it needs more: [on] slurm.time"
          worst=1
          return
        elif [ "$restarts" -ge 20 ] || { [ "$code" = 137 ] && [ "$restarts" -ge 3 ]; }; then
          note "$part" lost
          say "$part ended by $code, after $restarts restarts, and nothing was gained; it is not queued again"
          worst=1
          return
        fi
      fi
      if queue_again; then
        say "$part ended by $code and is queued again"
        exit 0
      fi
      note "$part" interrupted
      worst=130
      return ;;
  esac
  note "$part" "refused:$code"
  worst=$code
}
"""
BLOCKS = r"""
# The blocks of each task of the array, counted from 1.
tasks=({tasks})
for block in ${{tasks[$SLURM_ARRAY_TASK_ID]}}; do
  [ -n "$stop" ] && {{ note "b$block" interrupted; continue; }}
  one "b$block" "$folder/{shards}/b$block" {words} --block "$block" --out "$folder/{shards}/b$block"
done
exit "$worst"
"""
SINGLE = r"""
one {part} "$folder" {words}
exit "$worst"
"""


def lead_s(time_s: float | None) -> int:
    """How long before its end a job of this time is told of it: a quarter of a short one."""
    return LONGEST_LEAD_S if time_s is None else max(10, min(LONGEST_LEAD_S, int(time_s // 4)))


def blocks_script(asked: Asked, folder: Path, tasks: Sequence[Sequence[int]], time_s: float | None) -> str:
    """Of an array of blocks.

    Args:
        tasks:  the blocks of each task, by its index; from 0
        time_s: of a job
    """
    listed = " ".join(shlex.quote(" ".join(str(block + 1) for block in task)) for task in tasks)
    work = BLOCKS.format(tasks=listed, shards=SHARDS, words=shlex.join(asked.run))
    return _head("blocks", folder, time_s) + BODY + work


def plan_script(asked: Asked, folder: Path, time_s: float | None) -> str:
    return (
        _head("plan", folder, time_s) + BODY + SINGLE.format(part="plan", words=shlex.join(plan_words(asked, folder)))
    )


def report_script(folder: Path) -> str:
    return _head("report", folder, None) + BODY + SINGLE.format(part="report", words=shlex.join(report_words(folder)))


def _head(what: str, folder: Path, time_s: float | None) -> str:
    quoted = {"place": shlex.quote(str(Path.cwd())), "folder": shlex.quote(str(folder))}
    return HEAD.format(what=what, told_s=lead_s(time_s), **quoted)


def notes(folder: Path, block: int) -> list[str]:
    """Why each job of a block ended without it, the oldest first: "elsewhere", "time", "lost", "interrupted",
    "refused:2"."""
    return notes_of(folder, named([block]))


def notes_of(folder: Path, part: str) -> list[str]:
    """Likewise of "plan" and "report"."""
    try:
        lines = (folder / JOBS / f"{part}.ended").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split(" ", 1)[0] for line in lines if line]
