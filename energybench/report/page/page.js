"use strict";
// Tables that sort and filter, records in a dialog, figures to zoom. All texts are set as text, never as markup.
(() => {
const root = document.documentElement, holder = document.getElementById("data");
const data = holder ? JSON.parse(holder.textContent) : { charts: [], records: [] };
root.dataset.scripted = "yes";  // from here on, what zooms has room on the page

// ── tables ──
const keyOf = cell => {
  if (!cell) return "";
  const value = cell.dataset.value;
  if (value !== undefined) return value === "" ? null : Number(value);
  return cell.textContent.trim().toLocaleLowerCase("en");
};
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
for (const box of document.querySelectorAll(".table")) {
  const body = box.querySelector("tbody"), rows = [...body.rows];
  for (const head of box.querySelectorAll("thead th")) {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending", at = head.cellIndex;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((row, i) => [keyOf(row.cells[at]), i, row]);
      keyed.sort(([a, i], [b, j]) => (a === null) - (b === null)  // what is missing stays last, either way
        || (a === null ? 0 : up ? compare(a, b) : compare(b, a)) || i - j);
      body.append(...keyed.map(([, , row]) => row));
    });
  }
  const input = box.querySelector("input[type=search]"), count = box.querySelector(".count");
  if (!input) continue;
  const filter = () => {
    const wanted = input.value.toLocaleLowerCase("en").split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLocaleLowerCase("en");
      row.hidden = !wanted.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = wanted.length ? `${shown} of ${rows.length}` : `${rows.length} rows`;
  };
  input.addEventListener("input", filter);
  filter();
}

// ── contents ──
const links = new Map();
for (const link of document.querySelectorAll("nav a")) {
  const section = document.getElementById(link.hash.slice(1));
  if (section) links.set(section, link);
}
const seen = new Set();
const follow = new IntersectionObserver(entries => {
  for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target);
  let first = [...links.keys()].find(section => seen.has(section));
  if (!first && document.querySelector("nav a[aria-current]")) return;  // between two: still in the one before
  first ||= [...links.keys()][0];
  for (const [section, link] of links) {
    if (section !== first) { link.removeAttribute("aria-current"); continue; }
    link.setAttribute("aria-current", "true");
    const bar = link.closest("nav"), at = link.offsetLeft - bar.offsetLeft;
    if (at < bar.scrollLeft || at + link.offsetWidth > bar.scrollLeft + bar.clientWidth) bar.scrollLeft = at - 24;
  }
}, { rootMargin: "-15% 0px -60% 0px" });
for (const section of links.keys()) follow.observe(section);
const unfold = () => {
  const goal = location.hash && document.getElementById(location.hash.slice(1));
  if (goal && goal.tagName === "DETAILS") goal.open = true;
};
addEventListener("hashchange", unfold);
unfold();

// ── records ──
const dialog = document.getElementById("record");
for (const link of document.querySelectorAll("a[data-record]")) {
  const record = data.records[Number(link.dataset.record)];
  if (!record) continue;  // not in this page: the link leads to the file beside it
  link.setAttribute("role", "button");
  const open = event => {
    event.preventDefault();
    dialog.querySelector("h3").textContent = record.trial;
    dialog.querySelector("pre").textContent = JSON.stringify(record, null, 1);
    dialog.showModal();
  };
  link.addEventListener("click", open);
  link.addEventListener("keydown", event => { if (event.key === " ") open(event); });
}

// ── figures to zoom ──
const css = name => getComputedStyle(root).getPropertyValue(name).trim();
const fixed = { "#1f2328": "--ink", "#59636e": "--muted" };  // ink turns with the page, colours do not
const colour = line => fixed[line.color] ? css(fixed[line.color]) : line.color;
const shapes = {  // around 0, as in the pictures that stand still
  "o": "M3 0A3 3 0 1 1-3 0A3 3 0 1 1 3 0Z", "s": "M-2.7-2.7h5.4v5.4h-5.4z", "D": "M0-3.7L3.7 0 0 3.7-3.7 0Z",
  "^": "M0-3.5L3.3 2.6H-3.3Z", "v": "M0 3.5L3.3-2.6H-3.3Z", "P": "M-1.1-3.2h2.2v2.1h2.1v2.2h-2.1v2.1h-2.2v-2.1h-2.1v-2.2h2.1z",
  "X": "M-3.3-1.8L-1.8-3.3 0-1.5 1.8-3.3 3.3-1.8 1.5 0 3.3 1.8 1.8 3.3 0 1.5-1.8 3.3-3.3 1.8-1.5 0Z" };
const marks = line => (plot, at, from, to) => {  // a dozen along a line that has more points than that
  const drawn = new Path2D(), shape = new Path2D(shapes[line.mark]), [xs, ys] = [plot.data[0], plot.data[at]], big = devicePixelRatio;
  const there = [];
  for (let i = from; i <= to; i++) if (ys[i] !== null && ys[i] !== undefined) there.push(i);
  const step = there.length > 40 ? Math.ceil(there.length / 12) : 1;
  for (let i = 0; i < there.length; i += step) drawn.addPath(shape, new DOMMatrix(
    [big, 0, 0, big, plot.valToPos(xs[there[i]], "x", true), plot.valToPos(ys[there[i]], "y", true)]));
  return { stroke: drawn, fill: drawn, flags: 3 };
};
const sample = line => {  // of a line and its mark, for the legend
  const make = (name, facts) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(facts)) element.setAttribute(key, value);
    return element;
  };
  const stroke = fixed[line.color] ? `var(${fixed[line.color]})` : line.color;
  const icon = make("svg", { viewBox: "-13 -5 26 10", "aria-hidden": "true" });
  icon.append(make("path", { d: "M-13 0H13", "stroke-width": line.width, "stroke-dasharray": line.dash.join(" "),
    style: `stroke:${stroke};fill:none` }), make("path", { d: shapes[line.mark],
    style: `stroke:${stroke};fill:${line.hollow ? "var(--paper)" : stroke}` }));
  return icon;
};
const charts = [], whole = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 100000, 1000000];
const near = (plot, low, high) => low === null ? [1, 10] : [low / 1.2, high * 1.2];  // not to whole decades
const decades = {  // ticks at 1, 2 and 5 of each, or at 1 where there are many
  splits: (plot, axis, low, high) => {
    const ticks = [], few = Math.log10(high / low) < 3.5;
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of few ? [1, 2, 5] : [1]) {
        const tick = Number(`${digit}e${power}`);
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    return ticks;
  },
  filter: (plot, ticks) => ticks, values: (plot, ticks) => ticks.map(String),
};
for (const box of document.querySelectorAll("[data-chart]")) {
  const chart = data.charts[Number(box.dataset.chart)], place = box.querySelector(".plot");
  const table = uPlot.join(chart.series.map(line => [line.x, line.y]));
  const all = [table[0][0], table[0][table[0].length - 1]];
  const axis = (label, log) => ({ label: log ? `${label} (log scale)` : label, stroke: () => css("--muted"),
    grid: { stroke: () => css("--line"), width: 1 }, ticks: { show: false }, labelSize: 20, labelGap: 0,
    font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" });
  const upright = { ...axis(chart.y, chart.log), size: 56 };
  const across = { ...axis(chart.x, chart.log_x), size: 34, ...(chart.integer ? { incrs: whole } : {}) };
  if (chart.log) Object.assign(upright, decades);
  if (chart.log_x) Object.assign(across, decades);
  const wide = () => Math.max(240, place.clientWidth || box.clientWidth);
  const plot = new uPlot({
    width: wide(), height: 280, legend: { markers: { show: false } },
    scales: { x: { time: false, distr: chart.log_x ? 3 : 1 }, y: chart.log ? { distr: 3, range: near } : {} },
    axes: [across, upright],
    series: [{ label: chart.x }, ...chart.series.map(line => ({ label: line.label, spanGaps: true, width: line.width,
      dash: line.dash.length ? line.dash : undefined, stroke: () => colour(line),
      points: { show: true, fill: () => line.hollow ? css("--paper") : colour(line), paths: marks(line) } }))],
  }, table, place);
  charts.push(() => plot.setSize({ width: wide(), height: 280 }));
  const zoom = (factor, shift = 0) => {
    const { min, max } = plot.scales.x, middle = (min + max) / 2 + shift * (max - min);
    const half = Math.min((max - min) * factor, all[1] - all[0]) / 2;
    const low = Math.max(all[0], Math.min(middle - half, all[1] - 2 * half));
    plot.setScale("x", { min: low, max: low + 2 * half });
  };
  const acts = { "+": () => zoom(.5), "=": () => zoom(.5), "-": () => zoom(2), "ArrowLeft": () => zoom(1, -.25),
    "ArrowRight": () => zoom(1, .25), "0": () => plot.setScale("x", { min: all[0], max: all[1] }) };
  place.addEventListener("keydown", event => {
    if (event.target === place && Object.hasOwn(acts, event.key) && !event.ctrlKey && !event.metaKey) {
      event.preventDefault(); acts[event.key]();
    }
  });
  for (const button of box.querySelectorAll("[data-do]")) button.addEventListener("click", acts[button.dataset.do]);
  for (const row of place.querySelectorAll(".u-legend tr.u-series:not(:first-child) th")) {
    row.tabIndex = 0;
    row.setAttribute("role", "button");
    row.prepend(sample(chart.series[row.closest("tr").rowIndex - 1]));
    row.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); row.click(); }
    });
  }
  box.plot = plot;
}
const redraw = () => charts.forEach(draw => draw());
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
root.dataset.ready = "yes";
})();
