"""Whether sets of samples number the same classes."""

from __future__ import annotations

from trtq.data.classes import require_one_class_list
from trtq.data.samples import ImageSamples, Samples


def require_same_classes(*sets: Samples | None) -> None:
    """Refuse labelled images whose class numbers mean different classes.

    Args:
        sets: training samples first; None, masks and a program's own targets are skipped.

    Raises:
        DataError: the numbers of classes are ambiguous, or differ between the sets.
    """
    labelled = [s for s in sets if isinstance(s, ImageSamples) and s.has_targets and not s.dense]
    require_one_class_list(*(s.source for s in labelled))
