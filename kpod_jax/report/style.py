"""The page's style sheet: light and dark from one set of variables, a phone's width, and paper."""

from kpod_jax.report import figures, heatmap

_CSS = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 var(--serif); }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.2; font-weight: 600; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 0 0 .9rem; padding-top: 1.1rem;
  border-top: 1px solid var(--rule); }
h3 { font: 600 .74rem/1.3 var(--sans); letter-spacing: .06em; text-transform: uppercase;
  color: var(--muted); margin: 0 0 .4rem; }
section { margin-top: 2.6rem; }
section > p, .verdict { max-width: 46rem; }
p { margin: 0 0 .9rem; }
a { color: inherit; text-underline-offset: .2em; }
code { font: .84em/1.5 var(--mono); }
.muted { color: var(--muted); }
.eyebrow, nav, .caption, figcaption, .legend, table, .tiles, .badge, .nats {
  font-family: var(--sans); }
.eyebrow { font-size: .8rem; color: var(--muted); margin: 0 0 .5rem; overflow-wrap: anywhere; }
.verdict { font-size: 1.18rem; line-height: 1.5; margin: .8rem 0 1.1rem; }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; font-size: .84rem; }
nav a { color: var(--muted); text-underline-offset: .25em; text-decoration-color: var(--rule); }
nav a:hover { color: var(--ink); }
.caption, figcaption, .legend { font-size: .8rem; line-height: 1.45; color: var(--muted); }
.legend > span { color: var(--ink); }
.grid { display: grid; gap: 1.6rem 2.4rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.three { gap: 1.6rem 1.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.grid + * { margin-top: 1.6rem; }
.grid + .caption { margin-top: .3rem; }
.wide-left { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  align-items: start; }
figure { margin: 0; min-width: 0; max-width: 28rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { margin-top: .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.1rem 1.6rem; margin: 0 0 1.8rem; }
.tiles > div { border-left: 2px solid var(--series-0); padding-left: .8rem; }
.tiles dt { font-size: .8rem; color: var(--muted); }
.tiles dd { margin: 0; font: 600 1.45rem/1.35 var(--sans); font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.tiles dd.muted { font: .78rem/1.4 var(--sans); white-space: normal; }
.table { overflow-x: auto; margin-bottom: .7rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; line-height: 1.4;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink);
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 1px solid var(--ink); }
th, td { padding: .34rem .9rem .34rem 0; vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
.n { text-align: right; white-space: nowrap; }
.steps td:nth-child(3) { white-space: nowrap; }
.steps td:last-child { font-family: var(--serif); font-size: .95rem; width: 65%; min-width: 14rem; }
.settings td { overflow-wrap: anywhere; min-width: 9rem; }
.dot { display: inline-block; width: .62em; height: .62em; border-radius: 50%;
  margin-right: .55em; }
.word { padding: .08em .4em; border-radius: .25em; font-family: var(--serif); font-size: .95rem; }
meter { width: 100%; min-width: 4rem; height: .6rem; }
meter::-webkit-meter-bar { background: var(--rule); border: 0; border-radius: .2rem;
  height: .4rem; }
meter::-webkit-meter-optimum-value { background: var(--series-0); border-radius: .2rem; }
meter::-moz-meter-bar { background: var(--series-0); }
.sweep td:first-child { min-width: 7rem; }
.under { display: block; font-size: .74rem; color: var(--muted); white-space: nowrap; }
.missing { margin: 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.search input { font: .86rem/1.4 var(--sans); color: inherit; background: transparent;
  border: 1px solid var(--rule); border-radius: .4rem; padding: .4rem .7rem; width: 24rem;
  max-width: 100%; }
.search output { font: .8rem var(--sans); margin-left: .8rem; }
[hidden] { display: none !important; }
.card { border: 1px solid var(--rule); border-radius: .5rem; padding: 1rem 1.15rem;
  margin: 0 0 1.1rem; }
.card header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .3rem 1rem;
  margin-bottom: .45rem; color: var(--muted); }
.card p, .card ol { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.card ol { white-space: normal; padding: .2rem 0 .2rem 1.5rem; }
.card li::marker { color: var(--muted); font: .78rem var(--sans); }
.line { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; }
.nats { flex: none; font-size: .78rem; color: var(--muted); font-variant-numeric: tabular-nums; }
.card .question { font-style: italic; margin-bottom: .8rem; }
.card .answer { margin-top: .5rem; }
.badge { font-size: .78rem; font-weight: 600; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
.pair { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
details > summary { cursor: pointer; font-family: var(--sans); font-size: .9rem; }
details > .table, details > .card:nth-child(2) { margin-top: .9rem; }
footer { margin-top: 3rem; padding-top: .9rem; border-top: 1px solid var(--rule);
  font: .78rem/1.5 var(--sans); color: var(--muted); }
@media (max-width: 36rem) {
  main { padding: 1.6rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  .verdict { font-size: 1.05rem; }
  .card { padding: .85rem .9rem; }
  table { font-size: .8rem; }
  th, td { padding-right: .5rem; }
  .tiles { gap: 1rem; }
  .steps td:last-child { min-width: 10rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  nav, .search, details:has(article) { display: none; }
  section { margin-top: 1.6rem; }
  .grid { grid-template-columns: 1fr 1fr; gap: 1rem 1.6rem; }
  .three { grid-template-columns: 1fr 1fr 1fr; }
  figure, .card, tr, .tiles, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


def css() -> str:
    """All rules of the page, those of the heat map included."""
    light = {name: colours[0] for name, colours in figures.PALETTE.items()}
    dark = {name: colours[1] for name, colours in figures.PALETTE.items()}
    light |= {"right": "#1a7040", "wrong": "#b3261e"}
    dark |= {"right": "#6bcf8e", "wrong": "#ff9a8f"}
    return f"""
:root {{ color-scheme: light; {_variables(light)}
  --serif: Charter, "Bitstream Charter", "Source Serif 4", "Sitka Text", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; {_variables(dark)} }} }}
{heatmap.css()}{_CSS}"""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
