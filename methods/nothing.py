"""nothing: passes every verb on and changes nothing; what it costs is what the harness costs.

Promises 0 %. Composes with everything. The weights after training are bit-identical to the baseline's.
"""

from __future__ import annotations

from energybench import Method


class Nothing(Method):
    def epoch(self, run, data, inner):
        inner(data)

    def batches(self, run, data, inner):
        return inner(data)

    def step(self, run, batch, inner):
        inner(batch)

    def gradients(self, run, batch, inner):
        return inner(batch)

    def update(self, run, part, inner):
        inner(part)
