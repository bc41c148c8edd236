"""The status page: one HTML document without script and without anything fetched, readable on a phone at 3 a.m.

Nothing on it comes from a request, everything on it is escaped, and its policy allows the browser
nothing but its own style.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape

from agent.exporters.advice_steps import Advice
from agent.exporters.digest import Accusation, Digest, Misdeployed, Wrong, digest
from agent.model import NodeReport

REFRESH_SECONDS = 10

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f8;--card:#fff;--ink:#1c2126;--quiet:#5b6670;--line:#dfe3e7;--code:#eef1f4;
--bad:#b3261e;--badbg:#fdf0ee;--warn:#8a5a00;--warnbg:#fdf6e6;--good:#1e6b3a;--goodbg:#edf7f0}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e4e7ea;--quiet:#98a2ac;--line:#2d3339;
--code:#121518;--bad:#ff8a80;--badbg:#2c1a1a;--warn:#f0c060;--warnbg:#28220f;--good:#7fd39a;--goodbg:#15241a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:60rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
header{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;align-items:baseline}
h1{font-size:1.25rem;margin:.25rem 0}h2{font-size:.95rem;color:var(--quiet);margin:1.75rem 0 .5rem;font-weight:600}
h3{font-size:1.1rem;margin:0;color:var(--bad)}p{margin:.25rem 0}time,.quiet{color:var(--quiet);font-size:.875rem}
.sum{padding:.75rem 1rem;border-radius:8px;border-left:5px solid;font-weight:600;margin:.75rem 0}
.bad{color:var(--bad);background:var(--badbg);border-color:var(--bad)}
.warn{color:var(--warn);background:var(--warnbg);border-color:var(--warn)}
.good{color:var(--good);background:var(--goodbg);border-color:var(--good)}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:1rem;margin:.5rem 0}
.wrong{border-left:5px solid var(--bad)}
article{border-top:1px solid var(--line);margin-top:.75rem;padding-top:.75rem}article>p:first-child{font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.5rem 0}
dt{color:var(--quiet)}dd{margin:0;min-width:0}
.ev{display:flex;flex-wrap:wrap;gap:.25rem .5rem;padding:0;margin:0;list-style:none}
.ev li{background:var(--code);border-radius:4px;padding:0 .4rem}.ev span{color:var(--quiet)}
pre{background:var(--code);border-radius:6px;padding:.5rem .75rem;margin:.5rem 0 0;overflow-x:auto;
font:14px/1.6 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:normal}
.steps p{margin:.6rem 0 0}.steps p:first-child{margin:0}
.list{padding:.25rem 1rem}.list>div{padding:.5rem 0;border-top:1px solid var(--line)}
.list>div:first-child{border-top:0}.list b{display:block;font-weight:600}
.list b::before{display:inline-block;width:1.4em}
.ok b::before{content:"\\2713";color:var(--good)}.blind b::before{content:"?";color:var(--warn)}
.off b::before{content:"\\2013";color:var(--quiet)}.list p{color:var(--quiet);margin:0 0 0 1.4em}
footer{margin:2rem 0 .5rem}a{color:inherit}
@media(max-width:30rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.35rem}}
"""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(report: NodeReport) -> str:
    """Return the page. Pure."""
    seen = digest(report)
    return "".join(_document(seen))


def _document(seen: Digest) -> Iterator[str]:
    mark = "bad" if seen.wrong else "warn" if seen.unseen or seen.deployment or not seen.well else "good"
    sign = {"bad": "✗", "warn": "?", "good": "✓"}[mark]
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        f"<title>{sign} {escape(seen.node)} - nodediag</title><style>{STYLE}</style></head><body>"
    )
    yield f"<header><h1>{escape(seen.node)}</h1><time>{escape(seen.at)}</time></header><main>"
    yield f'<p class="sum {mark}">{escape(seen.headline)}</p>'
    for fault in seen.deployment:
        yield from _misdeployed(fault)
    for wrong in seen.wrong:
        yield from _wrong(wrong)
    yield from _list("What is well", "ok", seen.well)
    unseen = ((", ".join(group.types), group.why) for group in seen.unseen)
    yield from _list("What could not be seen, and why", "blind", unseen)
    yield from _list("About the agent itself", "off", seen.notes)
    yield from _list("Not on this node", "off", seen.absent)
    yield from _list("Last looks", "off", seen.looks)
    yield (
        f'</main><footer class="quiet">nodediag. This page reads itself anew every {REFRESH_SECONDS} seconds. '
        '<a href="/metrics">metrics</a></footer></body></html>\n'
    )


def _misdeployed(fault: Misdeployed) -> Iterator[str]:
    yield f'<section class="card wrong"><h3>{escape(fault.title)}</h3>'
    yield '<p class="quiet">a fault of the agent&#x27;s own deployment</p>'
    yield f"<article><p>{escape(fault.message)}</p><dl>"
    for label, text in fault.rows:
        yield f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>"
    yield "</dl></article></section>"


def _wrong(wrong: Wrong) -> Iterator[str]:
    yield f'<section class="card wrong"><h3>{escape(wrong.type)}</h3>'
    yield f'<p class="quiet">{escape(wrong.reason)}</p>'
    if not wrong.accusations:
        yield f"<article><p>{escape(wrong.message)}</p><p>since {escape(wrong.since)}</p></article>"
    for accusation in wrong.accusations:
        yield from _accusation(accusation)
    if wrong.further:
        yield f"<article><p>{len(wrong.further)} more</p><ul>"
        yield from (f"<li>{escape(message)}</li>" for message in wrong.further)
        yield "</ul></article>"
    yield "</section>"


def _accusation(accusation: Accusation) -> Iterator[str]:
    yield f"<article><p>{escape(accusation.message)}</p><dl>"
    for label, text in accusation.rows:
        yield f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>"
    if accusation.evidence:
        yield '<dt>evidence</dt><dd><ul class="ev">'
        yield from (f"<li><span>{escape(name)}</span> {escape(text)}</li>" for name, text in accusation.evidence)
        yield "</ul></dd>"
    yield "<dt>what to do</dt><dd>"
    yield from _steps(accusation.advice)
    yield "</dd></dl></article>"


def _steps(advice: Advice) -> Iterator[str]:
    """Each step with its commands in a block of its own, so that none is copied together with another's."""
    yield '<div class="steps">'
    for number, step in advice.numbered:
        yield f"<p>{number}{escape(step.text)}</p>"
        if step.commands:
            yield f"<pre>{escape(chr(10).join(step.commands))}</pre>"
    yield "</div>"


def _list(title: str, kind: str, entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    entries = tuple(entries)
    if entries:
        yield f'<h2>{title}</h2><div class="card list {kind}">'
        yield from (f"<div><b>{escape(name)}</b><p>{escape(text)}</p></div>" for name, text in entries)
        yield "</div>"
