"""State that one run shares: progress, notes, and how long each step took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trtq.progress import Clock, Notes, Progress, Silent


@dataclass(slots=True)
class Run:
    """The listener, the notes and the clock of one run.

    Attributes:
        progress: receives progress.
        clock: books the time of each step.
        note: tells a line and keeps it for the record.
    """

    progress: Progress = field(default_factory=Silent)
    clock: Clock = field(default_factory=Clock)
    note: Notes = field(init=False)

    def __post_init__(self) -> None:
        self.note = Notes(self.tell)

    @property
    def tell(self) -> Callable[[str], None]:
        """Receives a line for the user that no record keeps."""
        return self.progress.note
