"""The report in colour, for a terminal. Imports rich, so only `report_text.write` imports this, and late.

Commands stand alone on their lines and are never wrapped by us, so that they can be copied whole.
"""

import io
import shutil

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from agent.exporters.advice_steps import Step
from agent.exporters.digest import Accusation, Digest, Misdeployed, Wrong, digest
from agent.exporters.layout import WIDTH
from agent.exporters.report_text import COMMAND_INDENT, LABEL_WIDTH
from agent.model import NodeReport

RED, GREEN, YELLOW, QUIET, COMMAND = "bold bright_red", "green", "yellow", "dim", "bold cyan"


def render(report: NodeReport, width: int | None = None) -> str:
    """Return the report with ANSI colours, as wide as the terminal and at most 100 columns."""
    columns = min(width or shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=max(columns, 40), emoji=False)
    _show(console, digest(report))
    return stream.getvalue()


def _show(console: Console, seen: Digest) -> None:
    style = RED if seen.wrong else YELLOW if seen.unseen or seen.deployment else GREEN
    title = Text(f" {seen.node} ", "bold")
    console.print(
        Panel(Text(seen.headline, style), title=title, subtitle=Text(f" {seen.at} ", QUIET), border_style=style)
    )
    for fault in seen.deployment:
        _show_misdeployed(console, fault)
    for wrong in seen.wrong:
        _show_wrong(console, wrong)
    _show_names(console, "What is well", "✓", GREEN, seen.well)
    unseen = tuple((",\n".join(group.types), group.why) for group in seen.unseen)
    _show_names(console, "What could not be seen, and why", "?", YELLOW, unseen)
    _show_names(console, "About the agent itself", "·", "default", seen.notes)
    _show_names(console, "Not on this node", "-", QUIET, seen.absent)
    console.print()


def _show_misdeployed(console: Console, fault: Misdeployed) -> None:
    console.print()
    console.print(Rule(Text(f"The agent's own deployment: {fault.title}", YELLOW), align="left", style=YELLOW))
    console.print(Text(fault.message, "bold", overflow="fold"))
    grid = Table.grid()
    grid.add_column(style=QUIET, width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in fault.rows:
        grid.add_row(label, Text(text))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def _show_wrong(console: Console, wrong: Wrong) -> None:
    console.print()
    console.print(Rule(Text(f"{wrong.type}: {wrong.reason}", RED), align="left", style=RED))
    if not wrong.accusations:
        console.print(Text(wrong.message, "bold", overflow="fold"))
        console.print(Text(f"since {wrong.since}", QUIET))
    for number, accusation in enumerate(wrong.accusations):
        if number:
            console.print()
        _show_accusation(console, accusation)
    if wrong.further:
        console.print(Text(f"\n{len(wrong.further)} more:", "bold"))
    for message in wrong.further:
        console.print(Text(f"- {message}", overflow="fold"))


def _show_accusation(console: Console, accusation: Accusation) -> None:
    console.print(Text(accusation.message, "bold", overflow="fold"))
    grid = Table.grid()
    grid.add_column(style=QUIET, width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in accusation.rows:
        grid.add_row(label, Text(text))
    if accusation.evidence:
        grid.add_row("evidence", Text("\n".join(f"{name}: {text}" for name, text in accusation.evidence)))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))
    for at, (number, step) in enumerate(accusation.advice.numbered):
        _show_step(console, "" if at else "what to do", number, step)


def _show_step(console: Console, label: str, number: str, step: Step) -> None:
    """Commands of one step stand together; between them and the next step's stands what that one is for."""
    grid = Table.grid()
    grid.add_column(style="bold", width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(label, number, Text(step.text))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))
    for command in step.commands:
        console.print(Text(COMMAND_INDENT).append(command, COMMAND), soft_wrap=True)


def _show_names(console: Console, title: str, mark: str, style: str, entries: tuple[tuple[str, str], ...]) -> None:
    if not entries:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in entries:
        table.add_row(Text(mark, style), Text(name), Text(text, QUIET))
    console.print()
    console.print(Text(title, "bold"))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
