"""Looking through the embedded log for damage, and repairing it."""

from __future__ import annotations

from pystreamlog.backend.verification import RepairReport, VerifyReport
from pystreamlog.coordination.partition import PartitionContext
from pystreamlog.coordination.repair_log import repair_log
from pystreamlog.coordination.verify_log import verify_log
from pystreamlog.embedded.progress import LookMeter, Progress
from pystreamlog.errors import ReadOnlyError
from pystreamlog.storage.files import Files
from pystreamlog.storage.findings import Findings

__all__ = ["Care"]


class Care:
    """Verifies and repairs one open log.

    Args:
        files: The door to the log's directory.
        log_id: The log's id.
        context: What the log's partitions have in common.
    """

    def __init__(self, files: Files, log_id: bytes, context: PartitionContext) -> None:
        self._files = files
        self._log_id = log_id
        self._context = context

    def verify(self, progress: Progress | None = None) -> VerifyReport:
        """See `StreamLog.verify`."""
        return self._verify(LookMeter(self._files, progress, looks=1))

    def _verify(self, meter: LookMeter) -> VerifyReport:
        findings = Findings(self._files, meter.add)
        look = verify_log(self._files, self._log_id, self._context, findings)
        meter.end_look()
        looks = [each for _, each in look.partitions.values()]
        return VerifyReport(
            path=self._files.root,
            damages=tuple(findings.damages),
            notes=tuple(findings.notes),
            topics=look.topics,
            partitions=len(looks),
            segments=sum(each.segments for each in looks),
            batches=sum(each.batches for each in looks),
            records=sum(each.records for each in looks),
            bytes=sum(each.size for each in looks),
        )

    def repair(self, progress: Progress | None = None, *, cut_tail: bool, force: bool) -> RepairReport:
        """See `StreamLog.repair`."""
        if self._context.read_only:
            raise ReadOnlyError("the log was opened with read_only=True: open it for writing to repair it")
        meter = LookMeter(self._files, progress, looks=2)
        findings = Findings(self._files, meter.add)
        look = verify_log(self._files, self._log_id, self._context, findings)
        meter.end_look()
        wanting = [each.path for each in findings.damages]
        wanting += [each.path for each in findings.notes if each.kind == "derived"]
        folders = [
            folder
            for name, (folder, _) in look.partitions.items()
            if any(path == self._files.path(name) or path.startswith(f"{self._files.path(name)}/") for path in wanting)
        ]
        transactions = look.transactions
        if transactions.journal is not None:
            folders.insert(0, transactions.folder)
        done = repair_log(folders, self._context.boot_id(), transactions, cut_tail=cut_tail, force=force)
        report = self._verify(meter)
        return RepairReport(path=report.path, done=tuple(done), damages=report.damages, notes=report.notes)
