"""What a selftest did, step by step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Step:
    """One step; its words say what was seen, or ``failed``."""

    name: str
    result: str = "failed"
    seconds: float = 0.0


@dataclass
class Steps:
    """The steps so far, the last one perhaps broken off."""

    done: list[Step] = field(default_factory=list)

    def warn(self, words: str) -> None:
        """Something that an operator should look at, though the test goes on."""
        self.done.append(Step("warning", words))

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A step that lasts as long as the block, which sets its result; it failed if the block raises."""
        step, began = Step(name), time.monotonic()
        self.done.append(step)
        result = "ok"
        step.result = result
        try:
            yield step
        except BaseException:
            step.result = "failed"
            raise
        finally:
            step.seconds = time.monotonic() - began
