"""Selects the rationales to keep: right, different, and at most so many per question."""

import collections


class Selection:
    """The rationales kept so far, by record.

    Two rationales are different if they differ in more than white space and case.
    """

    def __init__(self, limit: int) -> None:
        """Initializes an empty selection.

        Args:
          limit: maximum number of rationales per record; 0: no limit.
        """
        self._limit = limit
        self._kept: dict[str, dict[str, int]] = collections.defaultdict(dict)

    def add(self, record: str, sample: int, rationale: str) -> str:
        """Keeps a rationale if it is needed.

        Returns:
          "" if it is kept, else the reason why not.
        """
        kept, form = self._kept[record], " ".join(rationale.casefold().split())
        if form in kept:
            return f"it repeats another rationale; that of sample {kept[form]}"
        if self.is_full(record):
            return (
                f"its question has enough rationales; teacher.rationales_per_question={self._limit}"
            )
        kept[form] = sample
        return ""

    def is_full(self, record: str) -> bool:
        """Returns whether a record has as many rationales as wanted."""
        return 0 < self._limit <= self.count(record)

    def count(self, record: str) -> int:
        """Returns the number of rationales kept for a record."""
        return len(self._kept.get(record, ()))
