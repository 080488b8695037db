"""What the rules found: for each rule how much it compared, what it found, and the first few findings in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["REPORTED_ONLY", "Finding", "Report"]

REPORTED_ONLY = frozenset({"int-send-skip", "reread"})
"""Rules whose findings are counted and allowed: batches of two producers may interleave, groups read at least once."""

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One violation.

    Attributes:
        rule: Which rule.
        text: What was seen, and where.
    """

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass
class Report:
    """The result of a check.

    Attributes:
        compared: By rule, how many comparisons it made.
        violations: By rule, how many of them failed.
        findings: The first few of each rule.
        counts: What the history held.
    """

    compared: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def compare(self, rule: str, count: int = 1) -> None:
        """The rule was applied this often."""
        self.compared[rule] += count

    def find(self, rule: str, text: str) -> None:
        """The rule was broken."""
        self.violations[rule] += 1
        if self.violations[rule] <= _SHOWN:
            self.findings.append(Finding(rule, text))

    @property
    def bad(self) -> set[str]:
        """The rules that were broken and must not be."""
        return {rule for rule, count in self.violations.items() if count} - REPORTED_ONLY

    def demand(self, rules: Iterable[str]) -> None:
        """A rule of these that compared nothing is a finding too: it would have passed whatever happened."""
        for rule in sorted(set(rules)):
            if not self.compared[rule]:
                self.find("vacuous", f"{rule} had nothing to compare")

    def lines(self) -> list[str]:
        """All of it, for people."""
        lines = [f"{name:<32}{count:>10,}" for name, count in sorted(self.counts.items())]
        lines += ["", f"{'rule':<32}{'compared':>10}{'violations':>12}"]
        for rule in sorted({*self.compared, *self.violations}):
            mark = "  (allowed)" if rule in REPORTED_ONLY and self.violations[rule] else ""
            lines.append(f"{rule:<32}{self.compared[rule]:>10,}{self.violations[rule]:>12,}{mark}")
        shown = [finding for finding in self.findings if finding.rule not in REPORTED_ONLY]
        if shown:
            lines += ["", *map(str, shown)]
        return lines
