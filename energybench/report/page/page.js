"use strict";
// Tables that sort and filter, records in a dialog, figures to zoom. All texts are set as text, never as markup.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);

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
  const input = box.querySelector("input"), count = box.querySelector(".count");
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
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const fixed = { "#1f2328": "--ink", "#59636e": "--muted" };  // ink turns with the page, colours do not
const charts = [];
for (const box of document.querySelectorAll("[data-chart]")) {
  const chart = data.charts[Number(box.dataset.chart)], place = box.querySelector(".plot");
  const table = uPlot.join(chart.series.map(line => [line.x, line.y]));
  const all = [table[0][0], table[0][table[0].length - 1]];
  const axis = label => ({ label, stroke: () => css("--muted"), grid: { stroke: () => css("--line"), width: 1 },
    ticks: { show: false }, labelSize: 20, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" });
  const wide = () => Math.max(240, place.clientWidth || box.clientWidth);
  const plot = new uPlot({
    width: wide(), height: 280, scales: { x: { time: false } }, axes: [axis(chart.x), axis(chart.y)],
    series: [{ label: chart.x }, ...chart.series.map(line => ({ label: line.label, spanGaps: true, width: 1.5,
      stroke: () => fixed[line.color] ? css(fixed[line.color]) : line.color, points: { show: line.x.length < 60 } }))],
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
    row.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); row.click(); }
    });
  }
  box.plot = plot;
}
const redraw = () => charts.forEach(draw => draw());
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.documentElement.dataset.ready = "yes";
})();
