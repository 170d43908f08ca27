"""What the transfer campaigns counted, and which of it is a fault. Counts nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos_load import End, Verdicts

FAULTS = (
    "wrong_tokens",
    "leaked_blocks",
    "hangs",
    "false_alarms",
    "broken",
    "disagreements",
    "left_open",
    "died",
    "failures",
)


@dataclass
class Tally:
    kills: int = 0
    freezes: int = 0
    cancels: int = 0
    corruptions: int = 0
    detected: int = 0
    false_alarms: int = 0
    leaked_blocks: int = 0
    left_open: int = 0  # processes with bookings, requests or legs of nobody
    retries: int = 0  # attempts after one that failed on a worker, in all clusters
    died: int = 0  # workers that ended though nobody had killed them
    failures: list[str] = field(default_factory=list)  # campaigns that could not go on, and why
    verdicts: Verdicts = field(default_factory=Verdicts)

    def numbers(self) -> dict[str, object]:
        """What the last line says."""
        verdicts = self.verdicts
        return {
            "kills": self.kills,
            "freezes": self.freezes,
            "cancels": self.cancels,
            "corruptions": self.corruptions,
            "detected": self.detected,
            "wrong_tokens": verdicts.wrong_tokens,
            "leaked_blocks": self.leaked_blocks,
            "hangs": verdicts.ends[End.HANG],
            "false_alarms": self.false_alarms,
            "requests": verdicts.ends.total(),
            "complete": verdicts.ends[End.COMPLETE],
            "errors": verdicts.errors.total(),
            "error_codes": dict(verdicts.errors),
            "broken": verdicts.ends[End.BROKEN],
            "disagreements": verdicts.disagreements,
            "retries": self.retries,
            "left_open": self.left_open,
            "died": self.died,
            "failures": self.failures,
        }


def is_clean(numbers: dict[str, object]) -> bool:
    return not any(numbers[fault] for fault in FAULTS) and numbers["detected"] == numbers["corruptions"]
