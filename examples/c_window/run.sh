#!/bin/sh
# Compile into the trial's own folder, then train. Only the window that the program writes is billed.
set -e
build=${ENERGYBENCH_SCRATCH:-.}
${CC:-cc} -O2 -o "$build/train" train.c -lm
exec "$build/train" "$@"
