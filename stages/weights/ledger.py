"""Strict loading: every tensor of a file is put into a network, checked, or named as of no use; else an error."""

import re
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn

from stages.errors import ModelError
from stages.tensors import Tensors, misfit, shape_of

LISTED = 20  # problems that an error spells out
REMEDY = "Give the files as their authors published them, and the sizes they have: --like, or -S section.key=value."
# What a network computes when it is made; a file that has them too must have the same.
COMPUTED = ("position_ids", "token_type_ids", "relative_position_index")


class Ledger:
    """The tensors of one source that nobody has taken yet, and what was found wrong with them."""

    def __init__(self, tensors: Tensors, source: str) -> None:
        self.left, self.source = dict(tensors), source
        self.problems: list[str] = []

    def fill(
        self,
        network: nn.Module,
        prefix: str = "",
        rename: Callable[[str], str] = lambda name: name,
        own: tuple[str, ...] = (),
    ) -> None:
        """Put the tensors `prefix` + `rename`(name) into `network`; those called `own` only it has.

        Names and shapes must be the network's; a scalar of shape (1,) is none.
        """
        state = network.state_dict()
        for name, mine in state.items():
            theirs = prefix + rename(name)
            computed = name.endswith(COMPUTED)
            if name in own or (computed and theirs not in self.left):
                continue
            found = self.left.pop(theirs, None)
            problem = misfit(theirs, found, mine)
            if problem is not None or found is None:
                self.problems.append(str(problem))
            elif computed and not torch.equal(found, mine):
                self.problems.append(f"{theirs} has other values than this network computes")
            else:
                state[name] = found.to(mine.dtype)
        if not self.problems:
            network.load_state_dict(state, strict=True)

    def take(self, name: str) -> Tensor | None:
        """One tensor, for the caller to use."""
        return self.left.pop(name, None)

    def check(self, name: str, wanted: Tensor, key: str) -> None:
        """Where the file says what parameter `key` says too, both must say the same."""
        found = self.left.pop(name, None)
        if found is None:
            return
        if found.shape != wanted.shape:
            self.problems.append(f"{name} is {shape_of(found)}, {key} asks for {shape_of(wanted)}")
        elif not torch.allclose(found.float(), wanted.float(), rtol=1e-4, atol=1e-6):
            self.problems.append(f"{name} has other values than {key} gives")

    def close(self, of_no_use: str) -> list[str]:
        """The names left over that match the pattern `of_no_use`. Raises ModelError for any other, and for
        everything that was found wrong."""
        unused = [name for name in self.left if re.fullmatch(of_no_use, name)]
        self.problems += [f"{name} {shape_of(t)} has no place" for name, t in self.left.items() if name not in unused]
        if self.problems:
            self._refuse()
        return unused

    def _refuse(self) -> NoReturn:
        shown = "\n".join(f"  {problem}" for problem in self.problems[:LISTED])
        more = len(self.problems) - LISTED
        rest = f"\n  and {more} more" if more > 0 else ""
        raise ModelError(f"{self.source} does not fit ({len(self.problems)} tensors):\n{shown}{rest}", REMEDY)
