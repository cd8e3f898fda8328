"""The look of a report: calm, in light and dark, wide and narrow, on paper too."""

CSS = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1b1e23; --muted: #5a626e; --line: #d9dde2;
  --soft: #f1f3f5; --accent: #0072B2; --good: #00694d; --bad: #a63f00;
  --c1: #d5e6f2; --c2: #8fbfe0; --c3: #2f83b9; --c4: #004a7c; --on1: #10222f; --on3: #fff;
  --blue: #0072b2; --vermilion: #d55e00; --purple: #cc79a7; --green: #009e73; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ink: #e4e7eb; --muted: #a2abb8;
  --line: #343a43; --soft: #1f242b; --accent: #6db8e8; --good: #4fc9a4; --bad: #ff9a57;
  --c1: #1d3a50; --c2: #1f5f8c; --c3: #7db9de; --c4: #cbe5f6; --on1: #f2f7fb; --on3: #0b1b27;
  --blue: #56b4e9; --vermilion: #f08a4b; --purple: #dfa3c5; --green: #2fc79b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 1100px; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .8rem; }
p { margin: 0 0 .7rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
.subtitle { color: var(--muted); }
nav ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: .15rem 1.2rem;
  list-style: none; padding: 0; margin: 1.2rem 0 0; font-size: .94rem; }
section { margin-top: 2.4rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem;
  margin: 0 0 1.2rem; }
.tile { background: var(--soft); border-radius: .5rem; padding: .8rem .9rem; }
.tile dt { color: var(--muted); font-size: .84rem; }
.tile dd { margin: 0; font-size: .84rem; }
.tile dd.value { font-size: 1.5rem; font-weight: 600; line-height: 1.35; font-variant-numeric: tabular-nums; }
.tile .good { color: var(--good); font-weight: 600; } .tile .bad { color: var(--bad); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.6rem;
  margin: 1rem 0 1.2rem; align-items: start; }
figure { margin: 0; max-width: 31rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
figcaption, caption, .caption { color: var(--muted); font-size: .9rem; text-align: left; }
figcaption { margin-top: .4rem; }
.caption { margin: 1rem 0 .4rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; text-align: left; vertical-align: bottom; } th.n, td.n { text-align: right; }
td.w { white-space: normal; min-width: 18rem; max-width: 34rem; overflow-wrap: anywhere; }
tr.marked td, tr.marked th { background: var(--soft); font-weight: 600; }
tr.marked :first-child { box-shadow: inset 3px 0 0 var(--accent); }
details { margin: 0 0 1.2rem; } summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
details > .scroll { margin-top: .6rem; }
table.map { border-collapse: separate; border-spacing: 3px; }
.map th, .map td { border: 0; padding: .15rem .45rem; }
.map thead th { text-align: center; } .map thead th:first-child { text-align: left; }
.map tbody th { position: sticky; left: 0; background: var(--paper); text-align: right; font-weight: 400;
  vertical-align: middle; }
.map td { min-width: 4.1rem; text-align: center; border-radius: .25rem; line-height: 1.2; }
.map td small { display: block; font-size: .74rem; opacity: .85; }
.l0 { background: var(--soft); color: var(--muted); }
.l1 { background: var(--c1); color: var(--on1); } .l2 { background: var(--c2); color: var(--on1); }
.l3 { background: var(--c3); color: var(--on3); } .l4 { background: var(--c4); color: var(--on3); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .86em; }
pre { margin: 0; padding: .8rem .9rem; background: var(--soft); border-radius: .5rem; line-height: 1.5; }
p.missing { color: var(--muted); }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
