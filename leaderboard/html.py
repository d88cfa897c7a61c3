"""The leaderboard as one plain HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from .aggregate import Line, Score
from .terminal import interval, number

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>persbench leaderboard</title>
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
th { font-size: .85rem; opacity: .8; }
.bar { position: relative; display: inline-block; width: 7rem; height: .7rem; background: #8883; border-radius: .35rem; overflow: hidden; }
.bar i { position: absolute; inset: 0 auto 0 0; background: #2f9e64; }
.flag { background: #d9480f22; border-radius: .4rem; padding: .1rem .5rem; font-size: .85rem; }
</style></head><body>
<h1>persbench leaderboard</h1>
{% for text in disclaimers if text %}<p><strong>{{ text }}</strong></p>{% endfor %}
<p>Protection: 0 no help, 1 as if the photos had never been seen; mean over subjects with a 95% bootstrap interval clustered by subject.
Bystanders keep: share of the undefended personalization of unprotected subjects.</p>
<div class="wide"><table><thead><tr><th>#</th><th>Method</th><th>Attack</th><th colspan="2">Protection</th><th>Bystanders keep</th>
<th>Leak</th><th>Control</th><th>Floor</th><th>Alignment</th><th>Class prompts right</th><th>PSNR (dB)</th><th>Seconds</th><th>Flags</th></tr></thead><tbody>
{% for each in lines %}<tr><td>{{ loop.index }}</td><td>{{ each.method }}</td><td>{{ each.attack }}</td>
<td>{{ interval(each.protection) }}</td><td>{% if each.protection %}<span class="bar"><i style="width:{{ (100 * [0, [1, each.protection.mean] | min] | max) | round }}%"></i></span>{% endif %}</td>
<td>{{ interval(each.bystanders) }}</td><td>{{ number(each.means.leak) }}</td><td>{{ number(each.means.control) }}</td><td>{{ number(each.means.floor) }}</td>
<td>{{ number(each.means.alignment) }}</td><td>{{ number(each.means.prior_class) }}</td><td>{{ number(each.means.psnr, 1) }}</td><td>{{ number(each.means.protect_seconds, 0) }}</td>
<td>{% for flag in each.flags %}<span class="flag">{{ flag }}</span> {% endfor %}{% if each.errors %}<span class="flag">{{ each.errors }} with errors</span>{% endif %}</td></tr>
{% endfor %}</tbody></table></div>
<h2>Cells</h2>
<div class="wide"><table><thead><tr><th>Method</th><th>Attack</th><th>Subject</th><th>Seed</th><th>Protection</th><th>Leak</th><th>Control</th><th>Floor</th><th>Detected</th><th>Bystanders keep</th></tr></thead><tbody>
{% for s in scores %}<tr><td>{{ s.method }}{% if s.variant %} ({{ s.variant }}){% endif %}</td><td>{{ s.attack }}</td><td>{{ s.subject }}</td><td>{{ s.seed }}</td>
<td>{{ "void" if s.void else number(s.protection) }}</td><td>{{ number(s.leak) }}</td><td>{{ number(s.control) }}</td><td>{{ number(s.floor) }}</td><td>{{ number(s.detected) }}</td>
<td>{% for name, share in s.bystanders.items() %}{{ name }} {{ number(share) }} {% endfor %}</td></tr>
{% endfor %}</tbody></table></div>
</body></html>
"""


def write_page(path: Path, lines: Sequence[Line], scores: Sequence[Score], disclaimers: Sequence[str]) -> None:
    """Write the page; everything that comes from records is escaped."""
    template = Environment(autoescape=True).from_string(_PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = template.render(lines=lines, scores=scores, disclaimers=disclaimers, interval=interval, number=number)
    path.write_text(text, "utf-8")
