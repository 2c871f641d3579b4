"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);
const escapeText = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const byId = (id) => document.getElementById(id);
const axisOf = (name) => report.axes.find((axis) => axis.name === name);

function layoutOf(place, xTitle, yTitle, extra) {
  const axis = (title) => ({
    title: { text: escapeText(title), standoff: 8 }, automargin: true, exponentformat: "power", zeroline: false,
    gridcolor: cssColour("--grid"), linecolor: cssColour("--line"), tickcolor: cssColour("--line"),
  });
  return Object.assign({
    width: byId(place).clientWidth, height: byId(place).clientHeight,
    xaxis: axis(xTitle), yaxis: axis(yTitle), uirevision: xTitle + yTitle, hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 34, b: 8 },
    font: { family: "system-ui, sans-serif", size: 13, color: cssColour("--soft") },
    hoverlabel: { align: "left", bgcolor: cssColour("--card"), bordercolor: cssColour("--line"),
      font: { family: "system-ui, sans-serif", size: 13, color: cssColour("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: cssColour("--other"), activecolor: cssColour("--ink") },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
  }, extra);
}

const plotConfig = { displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

function hoverText(trial) {
  const figures = report.axes.filter((axis) => trial.figures[axis.name]).map((axis) => {
    const figure = trial.figures[axis.name];
    return escapeText(`${axis.label}: ${figure.text}, ${figure.origin}`);
  });
  const place = trial.front ? "on the front" : "not on the front";
  return [`<b>Trial ${trial.number}</b>, ${place}`, escapeText(trial.architecture), ...figures].join("<br>");
}

function coordinate(trial, axis) {
  if (axis.name === "trial") return { value: trial.number };
  const figure = trial.figures[axis.name];
  return figure ? { value: figure.value / axis.scale, low: figure.low, high: figure.high } : null;
}

function errorBars(points, axis, colour) {
  const length = (bound, point) => (bound === null || bound === undefined ? 0 : Math.abs(bound / axis.scale - point.value));
  return { type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour,
    array: points.map((point) => length(point.high, point)), arrayminus: points.map((point) => length(point.low, point)) };
}

function trialTrace(front, xAxis, yAxis) {
  const trials = report.trials.filter((trial) => trial.front === front && coordinate(trial, xAxis) && coordinate(trial, yAxis));
  const xs = trials.map((trial) => coordinate(trial, xAxis)), ys = trials.map((trial) => coordinate(trial, yAxis));
  const colour = cssColour(front ? "--front" : "--other");
  return { type: "scatter", mode: "markers", name: front ? "on the front" : "not on the front",
    x: xs.map((point) => point.value), y: ys.map((point) => point.value),
    error_x: errorBars(xs, xAxis, colour), error_y: errorBars(ys, yAxis, colour),
    text: trials.map(hoverText), hovertemplate: "%{text}<extra></extra>", customdata: trials.map((trial) => trial.number),
    marker: { color: colour, size: front ? 11 : 8, symbol: front ? "diamond" : "circle",
      line: { width: 1.5, color: cssColour("--card") } } };
}

function frontLine(trace, xAxis, yAxis) {
  const names = report.axes.filter((axis) => axis.direction).map((axis) => axis.name);
  if (names.length !== 2 || !names.includes(xAxis.name) || !names.includes(yAxis.name) || xAxis === yAxis) return [];
  const order = trace.x.map((_, index) => index).sort((a, b) => trace.x[a] - trace.x[b]);
  const shape = xAxis.direction === "minimize" ? "hv" : "vh";
  return [{ type: "scatter", mode: "lines", x: order.map((i) => trace.x[i]), y: order.map((i) => trace.y[i]), hoverinfo: "skip",
    showlegend: false, line: { shape, width: 1.5, dash: "dot", color: cssColour("--front") } }];
}

function limitShapes(xAxis, yAxis) {
  const line = { color: cssColour("--limit"), width: 1.5, dash: "dash" };
  const shapes = [];
  for (const limit of xAxis.limits) shapes.push({ type: "line", x0: limit / xAxis.scale, x1: limit / xAxis.scale, yref: "paper", y0: 0, y1: 1, line });
  for (const limit of yAxis.limits) shapes.push({ type: "line", y0: limit / yAxis.scale, y1: limit / yAxis.scale, xref: "paper", x0: 0, x1: 1, line });
  return shapes;
}

function drawScatter() {
  const xAxis = axisOf(byId("x-axis").value), yAxis = axisOf(byId("y-axis").value);
  const front = trialTrace(true, xAxis, yAxis), others = trialTrace(false, xAxis, yAxis);
  const layout = layoutOf("scatter", xAxis.title, yAxis.title, { shapes: limitShapes(xAxis, yAxis) });
  layout.xaxis.type = byId("x-log").checked ? "log" : "linear";
  layout.yaxis.type = byId("y-log").checked ? "log" : "linear";
  layout.uirevision += layout.xaxis.type + layout.yaxis.type;
  Plotly.react("scatter", [others, ...frontLine(front, xAxis, yAxis), front], layout, plotConfig);
}

function drawProgress() {
  const steps = report.hypervolume;
  const layout = layoutOf("progress", "trial", "hypervolume", { showlegend: false, margin: { l: 8, r: 12, t: 10, b: 8 } });
  layout.xaxis.dtick = Math.ceil((steps.at(-1)[0] + 1) / 12);
  Plotly.react("progress", [{ type: "scatter", mode: "lines+markers", x: steps.map((step) => step[0]), y: steps.map((step) => step[1]),
    line: { shape: "hv", width: 2, color: cssColour("--front") }, marker: { size: 6 },
    hovertemplate: "after trial %{x}: %{y:.4g}<extra></extra>" }],
  layout, plotConfig);
}

function draw() {
  if (byId("scatter")) drawScatter();
  if (byId("progress")) drawProgress();
}

function sortBy(header) {
  const column = [...header.parentElement.children].indexOf(header), body = header.closest("table").tBodies[0];
  const rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const keyOf = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => (Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b) : a - b);
  const rows = [...body.rows].sort((a, b) => {
    const left = keyOf(a), right = keyOf(b);
    if (left === "" || right === "") return (left === "") - (right === "");
    return rising ? compare(left, right) : compare(right, left);
  });
  body.append(...rows);
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortBy(button.closest("th")));
for (const control of document.querySelectorAll(".axes select, .axes input")) control.addEventListener("change", drawScatter);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
// Plotly's own responsiveness lags behind the page: it would leave a chart wider than its card for a moment.
const places = new ResizeObserver(draw);
for (const plot of document.querySelectorAll(".plot")) places.observe(plot);
if (byId("scatter")) byId("scatter").on("plotly_click", (event) => {
  const number = event.points[0].customdata;
  if (number !== undefined) location.hash = `trial-${number}`;
});
