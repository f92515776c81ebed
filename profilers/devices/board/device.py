"""A microcontroller's board as a device: one model, compiled into its firmware, asked by lines.

Nothing is pushed to a board. The model to be run is compared, by digest, with the one that its
firmware holds. Firmware that is not of a bundle states no digest and is trusted, so that the caller
must check its outputs by golden vectors. Arrays become the artifact's stored numbers here, as for
the runner on phones (tensor_bytes.py), and a window of inferences is one measurement: the board's
clock is read before and after, and no line is sent in between.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onmetal.errors import DeviceError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import Build, Fitness, Traits
from onmetal.profilers.devices.board.inferences import Inferences
from onmetal.profilers.devices.board.protocol import Tiny
from onmetal.profilers.devices.board.qemu import Qemu
from onmetal.profilers.devices.board.worker import BoardWorker
from onmetal.profilers.devices.local import Local
from onmetal.profilers.meters import Meter
from onmetal.records import Candidate, DeviceFacts
from onmetal.runtimes import in_firmware, installed, spec


class Board(Inferences):
    """One board. It is not shared: the run that opened it has it until `close`."""

    def __init__(
        self,
        address: str,
        tiny: Tiny,
        cache: Cache,
        *,
        baud: int | None = None,
        meter: Meter | None = None,
        qemu: Qemu | None = None,
    ) -> None:
        """`tiny`: its firmware, already greeted; `baud`: None where there is no such thing."""
        super().__init__(address, tiny, qemu, Local(cache))
        self.meter, self.baud = meter, baud

    @property
    def traits(self) -> Traits:
        emulated = self.qemu is not None
        return Traits(
            time_is_real=not emulated,
            counts_instructions=emulated,
            holds_one_model=True,
            kernels_of_host=False,
        )

    no_meter = "no meter: the board's address names none (`meter=lpm01a:/dev/…`)"

    def fitness(self) -> Fitness:
        return Fitness()

    def changed(self, state: dict[str, Any]) -> list[str]:
        return []

    def take(self) -> None:
        """Nothing is to be done: the run that opened its line has it."""

    def pin(self, threads: int) -> None:
        """Nothing is to be done: a board has one core."""

    def build(self, candidate: Candidate) -> Candidate:
        return candidate

    def built(self, runtime: str) -> Build | None:
        facts = self.facts()
        if facts.emulated:
            return None
        return Build("firmware", runtime, str(facts.more["profile"]), f"the board {facts.cpu}")

    def execute(
        self, program: Path, files: Mapping[str, Path], arguments: Sequence[str], timeout_s: float
    ) -> str:
        raise DeviceError(f"{program.name} is not for microcontrollers")

    def identity(self, runtime: str) -> list[Any]:
        facts = self.facts()
        details = [facts.more["model_digest"], facts.more["profile"], facts.emulated]
        return [facts.cpu, facts.flags, *details]

    def lacks(self, runtime: str) -> str:
        titles = " or ".join(spec(name).title for name in self.facts().runtimes)
        return f"does not run on {self.address}, a board that only {titles} runs on"

    def facts(self) -> DeviceFacts:
        firmware_profile = self.tiny.profile
        machine = self.qemu.machine if self.qemu else None
        more: dict[str, Any] = {
            "model": firmware_profile.model,
            "soc": f"{machine.name}: {machine.description}" if machine else firmware_profile.name,
            "model_digest": firmware_profile.sha256,
            "profile": firmware_profile.firmware,
            "arena_bytes_used": firmware_profile.arena_used,
            "arena_bytes_given": firmware_profile.arena_given,
            "baud": self.baud,
            "meters": [self.meter.kind] if self.meter else [],
        }
        return DeviceFacts(
            address=self.address,
            cpu=firmware_profile.name,
            arch="cortex-m",
            os="bare metal",
            cores=1,
            memory_bytes=0,
            emulated=self.qemu is not None,
            flags=(),
            runtimes=dict.fromkeys(in_firmware(), "unknown") | installed(in_firmware()),
            state=self.state(),
            more=more,
        )

    def state(self) -> dict[str, Any]:
        """Empty: nothing that a board reports changes."""
        return {}

    def worker(self, runtime: str | None = None) -> "BoardWorker":
        return BoardWorker(self)

    def close(self, *, keep: bool = False) -> None:
        """Give the port back, end the emulator, and switch the meter off."""
        try:
            self.tiny.close()
        finally:
            if self.meter:
                self.meter.close()
