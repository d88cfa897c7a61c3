// Table, filters, charts and theme of the leaderboard. Pages are complete without it: it sorts, filters and draws what they hold.
"use strict";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// --- theme

function themeButton(button) {
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const say = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("persbench-theme", root.dataset.theme); } catch { /* lasts for this page only */ }
    say();
    drawCharts();
  });
  dark.addEventListener("change", () => { say(); drawCharts(); });
  say();
}

// --- tables

function board(table) {
  const order = all("thead th", table).findIndex((th) => th.dataset.sort);
  const grid = new DataTable(table, {
    paging: false,
    info: false,
    autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    order: order < 0 ? [] : [[order, table.tHead.rows[0].cells[order].dataset.sort]],
    columnDefs: [{ targets: "no-sort", orderable: false }, { targets: "best-high", orderSequence: ["desc", "asc"] }],
    language: { emptyTable: "Nothing here yet.", zeroRecords: "No method matches; widen the filters." },
  });
  const form = document.querySelector(`form[data-filters="${table.id}"]`);
  if (!form) return;
  const status = document.getElementById(`${table.id}-status`);
  const selects = all("select[data-key]", form), search = form.querySelector("input[type=search]");
  const chosen = () => selects.filter((select) => select.value);
  grid.search.fixed("filters", (_text, _data, index) => {
    const row = grid.row(index).node();
    return chosen().every((select) => row.dataset[select.dataset.key].split("|").includes(select.value));
  });
  // Ranks are of the comparable rows: with a threat model chosen, among the methods of that one.
  const apart = form.querySelector("[data-ranks]");
  const update = () => {
    const within = apart?.value === "apart" || chosen().some((select) => select.dataset.key === "threat");
    grid.rows().nodes().toArray().map((row) => row.querySelector("td[data-rank]")).filter(Boolean).forEach((cell) => {
      cell.querySelector(".together").hidden = within;
      cell.querySelector(".apart").hidden = !within;
      cell.dataset.order = within ? cell.dataset.orderApart : cell.dataset.orderTogether;
    });
    grid.rows().invalidate("dom");
    grid.search(search ? search.value : "").draw();
    const shown = grid.rows({ search: "applied" }).count();
    if (status) status.textContent = `${shown} of ${grid.rows().count()} rows shown`;
    document.dispatchEvent(new CustomEvent("filtered", { detail: Object.fromEntries(selects.map((s) => [s.dataset.key, s.value])) }));
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", update);
  update();
}

// --- charts

const charts = new Map();
let filters = {};

function colours() {
  const probe = document.createElement("span");
  document.body.append(probe);
  const found = {};
  for (const name of ["ink", "muted", "line", "surface", "accent", "photos", "model", "bad", "good"]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

const faded = (colour, alpha) => colour.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const spread = (point) => (point.low === undefined || point.low === null ? "" : ` [${two(point.low)}, ${two(point.high)}]`);

function axis(colour, text, more = {}) {
  return {
    title: { display: Boolean(text), text, color: colour.muted },
    grid: { color: colour.line, drawTicks: false },
    border: { color: colour.line },
    ticks: { color: colour.muted, padding: 6 },
    ...more,
  };
}

// Protection under each attack, with intervals.
function bars(data, colour) {
  return {
    type: "barWithErrorBars",
    data: {
      labels: data.points.map((point) => point.name),
      datasets: [{
        data: data.points.map((point) => ({ x: point.value, xMin: point.low ?? point.value, xMax: point.high ?? point.value })),
        backgroundColor: data.points.map((point) => faded(point.weakest ? colour.bad : colour.accent, 0.55)),
        errorBarColor: colour.ink, errorBarWhiskerColor: colour.ink, errorBarLineWidth: 1.5, errorBarWhiskerSize: 8,
        maxBarThickness: 18, borderRadius: 3,
      }],
    },
    options: {
      indexAxis: "y", maintainAspectRatio: false, animation: false,
      plugins: {
        legend: { display: false }, datalabels: { display: false },
        tooltip: { callbacks: { label: (item) => `protection ${two(data.points[item.dataIndex].value)}${spread(data.points[item.dataIndex])}` } },
      },
      scales: {
        x: axis(colour, data.label, { suggestedMin: 0, suggestedMax: 1 }),
        y: axis(colour, "", { grid: { display: false }, ticks: { color: colour.ink, autoSkip: false } }),
      },
    },
  };
}

// Shares of the adversary's pictures that add up to one.
function shares(data, colour) {
  const paint = [faded(colour.bad, 0.85), faded(colour.accent, 0.75), faded(colour.muted, 0.45)];
  return {
    type: "bar",
    data: {
      labels: data.labels,
      datasets: data.parts.map((part, i) => ({ label: part.name, data: part.values, backgroundColor: paint[i], maxBarThickness: 18 })),
    },
    options: {
      indexAxis: "y", maintainAspectRatio: false, animation: false,
      plugins: {
        legend: { position: "bottom", labels: { color: colour.ink, boxWidth: 14 } }, datalabels: { display: false },
        tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${Math.round(100 * item.parsed.x)}%` } },
      },
      scales: {
        x: axis(colour, data.label, { stacked: true, min: 0, max: 1, ticks: { color: colour.muted, callback: (value) => `${Math.round(100 * value)}%` } }),
        y: axis(colour, "", { stacked: true, grid: { display: false }, ticks: { color: colour.ink, autoSkip: false } }),
      },
    },
  };
}

// Protection against what it costs: one point a method; shape and colour say what the method changes.
function tradeoff(data, colour, figure) {
  const select = figure.querySelector("select");
  const cost = data.axes.find((each) => each.key === select.value) ?? data.axes[0];
  const points = data.points.filter((point) =>
    point.costs[cost.key] !== null && point.value !== null && Object.entries(filters).every(([key, value]) => !value || point.row[key].split("|").includes(value)));
  const shape = { image: "circle", model: "rectRot", both: "triangle", none: "crossRot", unknown: "star" };
  const paint = { image: colour.photos, model: colour.model, both: colour.accent, none: colour.muted, unknown: colour.muted };
  return {
    type: "scatterWithErrorBars",
    data: {
      datasets: Object.entries(data.threats).map(([key, label]) => {
        const mine = points.filter((point) => point.threat === key);
        return {
          label, pointStyle: shape[key], radius: 6, hoverRadius: 8, borderColor: paint[key], backgroundColor: faded(paint[key], 0.7),
          borderWidth: key === "none" ? 2 : 1, errorBarColor: faded(paint[key], 0.6), errorBarWhiskerColor: faded(paint[key], 0.6), errorBarWhiskerSize: 5,
          data: mine.map((point) => ({ x: point.costs[cost.key], y: point.value, yMin: point.low ?? point.value, yMax: point.high ?? point.value, point })),
        };
      }).filter((set) => set.data.length),
    },
    options: {
      maintainAspectRatio: false, animation: false, layout: { padding: { right: 24, top: 12 } },
      onClick: (_event, hit, chart) => { if (hit.length) location.href = chart.data.datasets[hit[0].datasetIndex].data[hit[0].index].point.href; },
      onHover: (event, hit) => { event.native.target.style.cursor = hit.length ? "pointer" : ""; },
      plugins: {
        legend: { position: "bottom", labels: { color: colour.ink, usePointStyle: true } },
        datalabels: { color: colour.ink, align: "right", offset: 6, clamp: true, display: "auto", font: { size: 11 }, formatter: (value) => value.point.name },
        tooltip: { callbacks: { label: (item) => {
          const point = item.raw.point;
          return [point.name, `protection ${two(point.value)}${spread(point)}`, `${cost.label}: ${point.costs[cost.key].toLocaleString("en", { maximumFractionDigits: 3 })}`];
        } } },
      },
      scales: {
        x: axis(colour, `${cost.label} (${cost.better})`, { type: cost.log ? "logarithmic" : "linear", grace: "8%" }),
        y: axis(colour, "protection, worst case", { suggestedMin: 0, suggestedMax: 1 }),
      },
    },
  };
}

const kinds = { bars, shares, tradeoff };

function drawCharts() {
  const colour = colours();
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  for (const figure of all("figure[data-chart]")) {
    charts.get(figure)?.destroy();
    const data = JSON.parse(document.getElementById(figure.dataset.source).textContent);
    charts.set(figure, new Chart(figure.querySelector("canvas"), kinds[figure.dataset.chart](data, colour, figure)));
  }
}

document.addEventListener("DOMContentLoaded", () => {
  all("button.theme").forEach(themeButton);
  document.addEventListener("filtered", (event) => { filters = event.detail; drawCharts(); });
  all("table[data-board]").forEach(board);
  all("figure[data-chart] select").forEach((select) => select.addEventListener("change", drawCharts));
  if (globalThis.Chart && globalThis.ChartDataLabels) { Chart.register(ChartDataLabels); drawCharts(); }
});
