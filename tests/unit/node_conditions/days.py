"""Drives a plan through simulated time: a server that answers as told, a board that shows what it is told to."""

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.exporters.node_conditions.pace import Answer
from agent.exporters.node_conditions.plan import Pause, Plan, Request, WriteEvent
from agent.exporters.node_conditions.status import Seen

DAY = 86400.0
DONE = Answer(200, "200")
CREATED = Answer(201, "201")


def failed(code: int, retry_after: float | None = None, *, seldom: bool = False) -> Answer:
    return Answer(code, str(code), "no", retry_after, seldom)


def done(_request: Request, _now: float) -> Answer:
    return DONE


def always(answer: Answer) -> Callable[[Request, float], Answer]:
    return lambda _request, _now: answer


@dataclass
class Sent:
    """What was sent, and when."""

    requests: list[tuple[float, Request]] = field(default_factory=list)

    @property
    def writes(self) -> list[float]:
        return [at for at, request in self.requests if not isinstance(request, WriteEvent)]

    @property
    def events(self) -> list[float]:
        return [at for at, request in self.requests if isinstance(request, WriteEvent)]


def live(
    plan: Plan,
    board: Callable[[float], Seen],
    server: Callable[[Request, float], Answer] = done,
    *,
    began: float = 0.0,
    seconds: float = DAY,
    look: float = 5.0,
) -> Sent:
    """Let `seconds` pass. `look` is how often the board says something; a request takes 10 ms."""
    now, sent = began, Sent()
    while now < began + seconds:
        step = plan.next(board(now), now)
        if isinstance(step, Pause):
            assert step.seconds > 0
            now += min(step.seconds, look)
            continue
        sent.requests.append((now, step))
        now += 0.01
        plan.told(step, server(step, now), now)
    return sent
