"""The page's style sheet. Colours follow the reader's setting; charts use the same variables."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #16181d; --soft: #5b6069; --rule: #e3e3df; --grid: #ececea;
  --good: #1a7f4b; --bad: #c0362c; --bad-wash: #fdeeec; --heat: #1f5fae;
  --c0: #2a78d6; --c1: #e0602a; --c2: #159a6b; --c3: #c08400; --c4: #d4588c; --c5: #5b46b8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121316; --card: #1b1d21; --ink: #eceef1; --soft: #a1a7b1; --rule: #31343a; --grid: #292c31;
    --good: #4cc38a; --bad: #ff8577; --bad-wash: #3a1f1d; --heat: #6aaaf5;
    --c0: #5a9ef0; --c1: #f0824e; --c2: #38bd8c; --c3: #dca32a; --c4: #ea7fab; --c5: #9c8cf0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 36px 0 12px; }
h3 { font-size: .92rem; margin: 0 0 8px; font-weight: 600; }
p { margin: 0 0 10px; max-width: 75ch; }
.soft, figcaption { color: var(--soft); font-size: .87rem; }
.scroll + .soft, .charts + .soft, details + .soft { margin-top: 10px; }
figcaption { margin-top: 6px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; margin: 0; }
.verdict { border-left: 4px solid var(--good); margin: 16px 0; }
.verdict.invalid { border-left-color: var(--bad); background: var(--bad-wash); }
.verdict ul { margin: 6px 0 0; padding-left: 20px; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .84rem; }
section > .charts:first-child { margin-top: 16px; } section > * + .card, section > * + .charts { margin-top: 16px; }
.charts { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; padding: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: 8px 14px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 600;
  white-space: normal; min-width: 8.5em; max-width: 44vw; overflow-wrap: break-word; box-shadow: 1px 0 var(--rule); }
tr.best th:first-child { box-shadow: inset 4px 0 var(--good), 1px 0 var(--rule); }
td.pays { background: color-mix(in oklab, var(--good) 18%, var(--card)); }
td.loses, td.neither { background: var(--bad-wash); }
td small { display: block; color: var(--soft); font-size: .8rem; }
svg { display: block; width: 100%; height: auto; max-width: 560px; overflow: visible; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg text.name, svg text.value, svg g text { fill: var(--ink); } svg text.strong { font-size: 13px; font-weight: 650; }
.grid { stroke: var(--grid); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-dasharray: 5 4; }
.dot { fill: var(--c); opacity: 0; } .dot.marked, .dot:hover { opacity: 1; }
.limit { --c: var(--soft); }
.fill { fill: var(--c); } .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
.whisker.of { stroke: var(--c); }
.cell { fill: color-mix(in oklab, var(--heat) var(--share), var(--card)); }
.cell.best { stroke: var(--ink); stroke-width: 2.5; } .cell.none { fill: none; stroke: var(--rule); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 12px; padding: 0;
  font-size: .88rem; }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; background: var(--c);
  margin-right: 7px; vertical-align: middle; }
.legend .dashed { height: 0; border-top: 2px dashed var(--c); background: none; border-radius: 0; }
details { margin-top: 12px; } summary { cursor: pointer; margin-bottom: 8px; }
ul.said { margin: 0 0 12px; padding-left: 20px; max-width: 75ch; }
pre { overflow-x: auto; font-size: .82rem; margin: 8px 0 0; }
@media (min-width: 800px) { th:first-child { white-space: nowrap; max-width: none; } }
@media (max-width: 480px) { svg text { font-size: 13px; } svg text.strong { font-size: 14px; } }
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
