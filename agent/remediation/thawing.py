"""How a frozen cgroup is thawed: by systemd where systemd froze the unit that owns it, else by the cgroup's own file.

A thaw by the file leaves a unit that systemd froze with FreezerState=frozen, until `systemctl thaw` or a restart.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from agent.acts import RefusalReason, refused
from agent.host.cgroups import Freeze, is_pods
from agent.host.units import unit_of
from agent.remediation import cgroup_switch
from agent.remediation.cgroup_switch import Switch
from agent.remediation.remedy import ActError
from agent.remediation.systemd import FROZEN, BusError, DeclinedError, Systemd

BY_PARENT = "-by-parent"
SYSTEMDS_SWITCH = "cgroup.freeze"
"""systemd freezes units on cgroup v2 alone."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """A cgroup that is to be thawed: by systemd as `unit`, else by its `switch`; `left` is what that leaves behind."""

    told: Freeze
    systemd: Systemd
    unit: str = ""
    switch: Switch | None = None
    left: str = ""

    @property
    def by(self) -> str:
        """Who froze it, as far as that is known, for people; empty if it is not."""
        return f" (systemd froze its unit {self.unit})" if self.unit else ""

    def perform(self) -> str:
        """Thaw it and return what was done. Raises ActError."""
        if self.switch is not None:
            self.switch.turn(self.told.thawed)
            return f"cgroup {self.told.path} was thawed{self.left}"
        try:
            self.systemd.thaw(self.unit)
        except DeclinedError as error:
            raise ActError(f"{error}; nothing was done. See systemctl show -p FreezerState {self.unit}") from None
        except BusError as error:
            if not error.asked:
                raise ActError(f"nothing was done: {error}. By hand: systemctl thaw {self.unit}") from None
            return f"systemd was called to thaw {self.unit}, but {error}"
        return f"systemd thawed {self.unit}, and with it cgroup {self.told.path}"


class Thawer:
    """Finds out how a cgroup is thawed."""

    def __init__(self, systemd: Systemd, sysfs: str) -> None:
        self._systemd = systemd
        self._sysfs = sysfs

    @contextmanager
    def prepared(self, freezes: tuple[Freeze, ...]) -> Iterator[Thaw]:
        """Hold what thaws a process; `freezes`: the cgroups that hold it and were told to freeze, the nearest first.

        A dry run fails where the act would. Raises RefusedError.
        """
        left = ""
        try:
            told = self._frozen_by_systemd(freezes)
        except BusError as error:
            told = None
            units = [unit for each in freezes if (unit := unit_of(each.path)) and each.switch == SYSTEMDS_SWITCH]
            if units:
                left = f". If systemd froze it, FreezerState=frozen stays until `systemctl thaw {units[-1]}`: {error}"
        if told is not None:
            yield Thaw(told, self._systemd, unit=unit_of(told.path))
            return
        nearest = freezes[0]
        with ExitStack() as holding:
            try:
                switch = holding.enter_context(cgroup_switch.opened(self._sysfs, nearest.directory, nearest.switch))
            except OSError as error:
                why = f"cgroup {nearest.path} cannot be thawed from here: {cgroup_switch.why_not(error)}"
                raise refused(RefusalReason.CANNOT_SEE, why) from None
            yield Thaw(nearest, self._systemd, switch=switch, left=left)

    def _frozen_by_systemd(self, freezes: tuple[Freeze, ...]) -> Freeze | None:
        """Return the outermost cgroup whose unit systemd froze: a pod's slice is thawed with all units in it.

        Any other slice holds more than was found frozen. Raises BusError, RefusedError.
        """
        for told in reversed(freezes):
            unit = unit_of(told.path)
            if not unit or told.switch != SYSTEMDS_SWITCH:
                continue
            state = self._systemd.freezer_state(unit, told.path)
            if state in FROZEN and state.endswith(BY_PARENT):
                why = f"systemd froze {unit} with a slice above it, which holds others too (FreezerState={state})"
                raise refused(RefusalReason.UNSAFE_NOW, f"{why}: thaw that slice by hand with `systemctl thaw SLICE`")
            if state in FROZEN and unit.endswith(".slice") and not is_pods(told.path):
                why = f"systemd froze {unit}, which holds others too (FreezerState={state})"
                raise refused(RefusalReason.UNSAFE_NOW, f"{why}: thaw it by hand with `systemctl thaw {unit}`")
            if state in FROZEN:
                return told
        return None
