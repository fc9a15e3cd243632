"""Statistics of the decision log as one page of HTML: plots in SVG, without scripts or external resources.

All text from a log is escaped twice: to printable ASCII, and for HTML. As a second defence, a Content-Security-Policy
in the page forbids every request and script.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from policyd.logs.timestamps import rfc3339
from policyd.tools.stats.collect import over_time
from policyd.tools.stats.output import (
    also_delivered_figure,
    by_hits,
    clients_figure,
    counter_decisions,
    durations,
    greylisting,
    only_elsewhere,
    origins,
    owner_tables,
    summary,
    with_counts,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Sequence

    from policyd.tools.stats.collect import Stats

_CLASSES = {"REJECT": "reject", "DEFER": "defer", "DEFER_IF_PERMIT": "permit", "DUNNO": "dunno"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #6b7280; --line: #d4d7dc; --page: #fff;
  --reject: #c0392b; --defer: #e0a100; --permit: #f0cf65; --dunno: #8fb8a0; --bar: #4a7fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --faint: #9aa1ab; --line: #3a3f46; --page: #16181c;
  --reject: #e0574a; --defer: #e0b030; --permit: #a8893a; --dunno: #4c7a62; --bar: #6fa3d3; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, .faint { color: var(--faint); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--faint); } svg .axis { stroke: var(--line); }
.reject { fill: var(--reject); } .defer { fill: var(--defer); } .permit { fill: var(--permit); }
.dunno { fill: var(--dunno); } .bar { fill: var(--bar); }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 1rem; vertical-align: -.05rem; }
.key.reject { background: var(--reject); } .key.defer { background: var(--defer); }
.key.permit { background: var(--permit); } .key.dunno { background: var(--dunno); }
"""

# Width and height of a plot over time, and its margins, in units of SVG.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 960, 260, 60, 40, 10
_LABEL = 70  # the width of a label under the plot

# Maximum number of rules in a table or a list, and in a plot.
_MAX_RULES = 200
_MAX_BARS = 15


def page(stats: Stats) -> str:
    """Returns the whole document, in ASCII."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="robots" content="noindex">',
        f"<title>policyd: {stats.decisions:,} decisions</title><style>{_STYLE}</style></head><body>",
        f"<h1>What policyd decided</h1><p>{escape(summary(stats))}</p>",
        _actions(stats),
        _timeline(stats),
        _rules(stats),
        _observed(stats),
        _rules_without_effect(stats),
        *(_bars(title, rows) for title, rows in origins(stats) if rows),
        _owners(stats),
        _memory(stats),
        _dns(stats),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> str:
    """Returns a table. `rows` are already HTML; `numbers` are the positions of columns with numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in numbers else ''}>{cell}</{tag}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f"<table><tr>{cells('th', headings)}</tr>\n{body}</table>"


def _actions(stats: Stats) -> str:
    rows = [
        (escape(action), f"{count:,}", f"{count / max(stats.decisions, 1):.1%}")
        for action, count in stats.actions.most_common()
    ]
    would = ""
    if stats.would:
        counts = escape(with_counts(stats.would))
        would = f"<p>Not sent, because the file has <code>mode: observe</code>: {counts}.</p>"
    return _table(("action", "decisions", "share"), rows, {1, 2}) + would


def _timeline(stats: Stats) -> str:
    """Returns a plot with a column for each hour, day or month, in which the actions are stacked."""
    unit, steps = over_time(stats)
    most = max((actions.total() for _, actions in steps), default=0)
    if not most:
        return ""
    ceiling = _ceiling(most)
    step = (_WIDTH - _LEFT) / len(steps)
    plot_height = _HEIGHT - _BOTTOM - _TOP
    drawn = []
    for fraction in (0, 0.5, 1):
        y = _TOP + plot_height * (1 - fraction)
        drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{ceiling * fraction:,.0f}</text>')
    labelled = max(1, len(steps) // 8)
    for place, (label, actions) in enumerate(steps):
        x = _LEFT + place * step
        drawn.append(_column(x, max(step - 1, 0.5), actions, plot_height / ceiling, label))
        if place % labelled == 0 and x < _WIDTH - _LABEL:
            drawn.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{escape(label)}</text>')
    keys = "".join(
        f'<span class="key {name}"></span>{escape(action)}'
        for action, name in _CLASSES.items()
        if any(actions[action] for _, actions in steps)
    )
    return (
        f"<h2>Decisions by {unit}</h2><div>{keys}</div>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="decisions by {unit}">{"".join(drawn)}</svg>'
    )


def _column(x: float, width: float, actions: Counter[str], scale: float, label: str) -> str:
    parts = []
    y = float(_HEIGHT - _BOTTOM)
    for action, name in _CLASSES.items():
        height = actions[action] * scale
        if height:
            y -= height
            parts.append(f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
    return f"<g><title>{escape(f'{label}: {with_counts(actions)}')}</title>{''.join(parts)}</g>" if parts else ""


def _ceiling(most: int) -> int:
    """Returns the smallest number that is at least `most`, and is 1, 2 or 5 times a power of ten."""
    power = int(f"1{'0' * (len(str(most)) - 1)}")
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= most)


def _rules(stats: Stats) -> str:
    rows = [
        (
            f"<code>{escape(name)}</code>",
            escape(", ".join(action for action, _ in rule.actions.most_common())),
            f"{rule.hits:,}",
            clients_figure(rule),
            rfc3339(rule.last),
            also_delivered_figure(rule),
        )
        for name, rule in by_hits(stats.rules)[:_MAX_RULES]
    ]
    if not rows:
        return ""
    plot = _bars("", [(name, rule.hits) for name, rule in by_hits(stats.rules)[:_MAX_BARS]])
    headings = ("rule", "action", "decisions", "clients", "last", "also delivered")
    return f"<h2>Rules</h2>{plot}{_table(headings, rows, {2, 3, 5})}"


def _observed(stats: Stats) -> str:
    rows = [
        (
            f"<code>{escape(name)}</code>",
            escape(stats.rule_actions.get(name, "-")),
            f"{rule.hits:,}",
            clients_figure(rule),
            escape(with_counts(rule.actions)),
        )
        for name, rule in by_hits(stats.observed)[:_MAX_RULES]
    ]
    if not rows:
        return ""
    headings = ("rule", "would", "decisions", "clients", "answered instead")
    return f"<h2>Observed rules</h2>{_table(headings, rows, {2, 3})}"


def _rules_without_effect(stats: Stats) -> str:
    parts = []
    for title, names in (
        ("Rules that never matched", stats.unmatched),
        ("Rules whose refused mails were all also delivered", only_elsewhere(stats)),
    ):
        if names:
            listed = ", ".join(f"<code>{escape(name)}</code>" for name in names[:_MAX_RULES])
            more = f" and {len(names) - _MAX_RULES:,} more" if len(names) > _MAX_RULES else ""
            parts.append(f"<h2>{title}</h2><div>{listed}{more}</div>")
    return "".join(parts)


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> str:
    """Returns a plot with a horizontal bar for each row."""
    most = max(count for _, count in rows)
    height = 22
    drawn = []
    for place, (name, count) in enumerate(rows):
        y = place * height
        width = max((_WIDTH - 380) * count / most, 1)
        text = name if len(name) <= 44 else f"{name[:41]}..."
        drawn.append(
            f"<g><title>{escape(f'{name}: {count:,}')}</title>"
            f'<text x="270" y="{y + 15}" text-anchor="end">{escape(text)}</text>'
            f'<rect class="bar" x="280" y="{y + 4}" width="{width:.1f}" height="{height - 8}"/>'
            f'<text x="{286 + width:.1f}" y="{y + 15}">{count:,}</text></g>'
        )
    heading = f"<h2>{escape(title[:1].upper() + title[1:])}</h2>" if title else ""
    label = escape(title or "decisions by rule")
    size = f"0 0 {_WIDTH} {len(rows) * height}"
    return f'{heading}<svg viewBox="{size}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def _owners(stats: Stats) -> str:
    """Returns a table by system and a table by country."""
    parts = []
    for heading, owners in owner_tables(stats):
        rows = [
            (escape(label), f"{owner.decisions:,}", f"{owner.refused:,}", f"{owner.refused / owner.decisions:.0%}")
            for label, owner in owners
        ]
        if rows:
            title = "Systems" if heading == "system" else "Countries"
            parts.append(f"<h2>{title}</h2>{_table((heading, 'decisions', 'refused', 'share'), rows, {1, 2, 3})}")
    return "".join(parts)


def _memory(stats: Stats) -> str:
    parts = [f"<p>Greylisting: {escape(greylisting(stats))}.</p>"] if stats.greylist else []
    parts += [
        f"<p>Counter {escape(name)}: {escape(counter_decisions(counter))}.</p>"
        for name, counter in stats.counters.items()
    ]
    return "".join(["<h2>Memory</h2>", *parts]) if parts else ""


def _dns(stats: Stats) -> str:
    rows = [(escape(status), f"{count:,}") for status, count in stats.reverse_dns.most_common()]
    rows += [(f"error: {escape(reason)}", f"{count:,}") for reason, count in stats.dns_errors.most_common()]
    parts = [f"<h2>Reverse DNS</h2>{_table(('status', 'decisions'), rows, {1})}"] if rows else []
    if stats.downgraded:
        parts.append(f"<p>{stats.downgraded:,} REJECT became DEFER, because DNS failed.</p>")
    if stats.milliseconds:
        parts.append(f"<p>Duration of a decision: {durations(stats)}.</p>")
    return "".join(parts)
