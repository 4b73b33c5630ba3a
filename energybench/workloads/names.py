"""Things that a suite calls by name: a package's table of its own, and what installed packages offer.

A name of our own, of torchvision or of a known data set means the same on every machine: a package that offers another
thing under it is told as hidden, never used in its place. Nothing is imported but the module of the name that is used,
and the packages of an extra are looked for before it is. Imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from energybench.common.errors import Problem, UsageError
from energybench.common.extras import missing_packages
from energybench.common.names import known_as
from energybench.train import plugins
from energybench.workloads import catalogue


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one kind.

    kind:  "task", "model" or "data"
    code:  of the error where something cannot be used
    table: name → "module:object"
    needs: name → the extra of energybench that has the packages it imports
    """

    kind: str
    code: str
    table: Mapping[str, str]
    needs: Mapping[str, str]

    def known(self) -> list[str]:
        """Every name: ours, then what installed packages offer."""
        return list(dict.fromkeys([*self.table, *plugins.offers(self.kind)]))

    def load(self, use: str, where: str = "") -> Callable[..., Any] | None:
        """What is called so, whatever its capitals: a class or a function; None for a name that nothing has.

        Raises:
            UsageError: `code`, for a thing whose extra is not installed or whose package is broken
        """
        what = catalogue.WORDS[self.kind]
        name = known_as(use, self.table)
        if name not in self.table:
            offer = catalogue.offer(self.kind, use)
            return self._of_package(offer, where) if offer else None
        extra = self.needs.get(name, "")
        if missing := missing_packages(extra):
            lacks = f"{', '.join(missing)}, which {'are' if missing[1:] else 'is'} not installed"
            hint = f"pip install 'energybench[{extra}]'"
            raise UsageError(Problem(self.code, f"the {what} '{name}' needs {lacks}", where, hint))
        module, _, attribute = self.table[name].partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return found

    def _of_package(self, offer: plugins.Offer, where: str) -> Callable[..., Any]:
        found = plugins.load(offer, catalogue.WORDS[self.kind], self.code, where)
        if not callable(found):
            word = "class" if self.kind == "task" else "function"
            message = f"what the package {offer.package} offers as '{offer.name}' is no {word}: {found!r}"
            raise UsageError(Problem(self.code, message, where, offer.remedy))
        made: Callable[..., Any] = found
        return made
