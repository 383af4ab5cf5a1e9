"""The report's style sheet. A Python file, so that a change of it changes the step's key."""

STYLE = """
:root {
  color-scheme: light;
  --ink: #1f2933; --faint: #6b7785; --line: #e4e7eb; --accent: #1d5c87; --warm: #b5532a; --good: #2f7d4f;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "DejaVu Serif", serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f4; color: var(--ink); font: 15px/1.5 var(--sans); }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 2px; }
h3 { font-size: 13px; font-weight: 600; margin: 0; }
.lead, .note { color: var(--faint); }
.lead { margin: 0 0 28px; max-width: 80ch; }
.note { font-size: 13px; margin: 0 0 14px; max-width: 95ch; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 14px; margin-bottom: 14px; }
.card, section { background: white; border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 16px 18px; }
.card b { display: block; font-size: 28px; line-height: 1.15; font-weight: 650; letter-spacing: -0.02em; }
.card b { color: var(--accent); font-variant-numeric: tabular-nums; }
.card span { display: block; font-weight: 600; }
.card small { color: var(--faint); font-size: 12.5px; }
section { padding: 22px 24px; margin-top: 14px; overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px; }
.pair section { margin-top: 0; }
svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
th:first-child, td:first-child, .left { text-align: left; }
thead th { font-size: 13px; color: var(--faint); font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
td small, th small { color: var(--faint); display: inline-block; min-width: 9em; font-size: 12.5px; }
td small.bad { color: var(--warm); }
td small.good { color: var(--good); }
code { font: 12.5px/1.4 var(--mono); color: var(--faint); }
.digest { overflow-wrap: anywhere; white-space: normal; text-align: left; }

.verse, .strategies { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0 22px; }
.verse { margin-top: 12px; padding-top: 14px; border-top: 1px solid var(--line); }
.verse p { font: 15px/1.55 var(--serif); white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 6px; }
.verse p b { color: var(--accent); font-weight: 600; }
.strategies span { color: var(--faint); font-size: 12.5px; }
details { margin-top: 18px; border-top: 1px solid var(--line); padding-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
details > .strategies { margin-top: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 12px 0 0; font-size: 13.5px; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--faint); }

@media (max-width: 700px) {
  .verse { grid-template-columns: 1fr; }
  .strategies { display: none; }
  .pair { grid-template-columns: 1fr; }
  dl { grid-template-columns: 1fr; }
}
@media print {
  body { background: white; }
  section, .card { break-inside: avoid; }
}
"""
