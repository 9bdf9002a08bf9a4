// Hover and keyboard details, the heat map's layers, tables of the charts' data, and the theme. Without it the page is whole.
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const format = value => value.toLocaleString("en-US", {maximumFractionDigits: 1});

function element(name, text, parent, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

// lines: [colour or "", name, value]
function showTip(title, lines, x, y) {
  tip.replaceChildren();
  element("b", title, tip);
  for (const [colour, name, value] of lines) {
    const line = element("span", undefined, tip), left = element("span", undefined, line);
    const label = element("span", undefined, left);
    if (colour) label.append(element("i", undefined, undefined, "key " + colour));
    label.append(name);
    element("span", value, line);
  }
  tip.hidden = false;
  const wide = document.documentElement.clientWidth, box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > wide ? x - 16 - box.width : x + 16;
  tip.style.left = Math.max(4, Math.min(left, wide - box.width - 4)) + "px";
  tip.style.top = Math.max(4, Math.min(y + 16, innerHeight - box.height - 4)) + "px";
}

// pick(fractions of width and of height from the bottom) moves the guides and shows the tip.
function follow(area, pick, columns) {
  const guide = area.querySelector(".guide:not(.across)");
  let column = -1;
  const at = (fx, fy, x, y) => {
    column = Math.min(columns - 1, Math.max(0, Math.floor(fx * columns)));
    guide.hidden = false;
    guide.style.left = 100 * column / columns + "%";
    guide.style.width = 100 / columns + "%";
    pick(column, fy, x, y);
  };
  const leave = () => {
    for (const each of area.querySelectorAll(".guide")) each.hidden = true;
    tip.hidden = true;
  };
  area.addEventListener("pointermove", event => {
    const box = area.getBoundingClientRect();
    at((event.clientX - box.left) / box.width, (box.bottom - event.clientY) / box.height, event.clientX, event.clientY);
  });
  area.addEventListener("pointerleave", leave);
  area.addEventListener("blur", leave);
  area.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, Home: -columns, End: columns}[event.key];
    if (event.key === "Escape") leave();
    if (step === undefined) return;
    event.preventDefault();
    const next = Math.min(columns - 1, Math.max(0, column + step)), box = area.getBoundingClientRect();
    at((next + 0.5) / columns, 0.5, box.left + box.width * (next + 0.5) / columns, box.top + box.height / 2);
  });
}

function followChart(id, chart) {
  const figure = document.getElementById(id);
  follow(figure.querySelector(".area"), (column, _, x, y) => {
    const lines = chart.series.map(each => [each.colour, each.name, each.values[column]]).filter(each => each[2] || !chart.stack);
    const sum = lines.reduce((total, each) => total + each[2], 0);
    const shown = lines.map(([colour, name, value]) => [colour, name, format(value)]);
    if (chart.stack && lines.length > 1) shown.push(["", "together", format(sum)]);
    if (!lines.length) shown.push(["", "nothing", ""]);
    showTip(chart.bins[column], shown, x, y);
  }, chart.bins.length);
  addTable(figure, chart);
}

// The numbers behind a chart, made when they are asked for.
function addTable(figure, chart) {
  const details = element("details");
  element("summary", "data", details);
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    const box = element("div", undefined, details, "table"), table = element("table", undefined, box);
    const head = element("tr", undefined, element("thead", undefined, table));
    for (const name of [chart.x, ...chart.series.map(each => each.name)]) element("th", name, head);
    const body = element("tbody", undefined, table);
    chart.bins.forEach((bin, row) => {
      const line = element("tr", undefined, body);
      element("th", bin, line);
      for (const each of chart.series) element("td", format(each.values[row]), line, "n");
    });
  });
  const legend = figure.nextElementSibling;
  (legend && legend.className === "legend" ? legend : figure).after(details);
}

function unpack({wide, data}) {
  const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0));
  return wide ? new Uint16Array(bytes.buffer) : bytes;
}

function followHeat(heat) {
  const figure = document.getElementById("heat"), area = figure.querySelector(".area");
  const across = area.querySelector(".across"), columns = heat.bins.length, count = heat.rows.length;
  const state = unpack(heat.state), cells = Object.entries(heat.cells).map(([name, each]) => [name, unpack(each)]);
  const percent = part => (part === 8 ? "100" : part ? "~" + Math.round(12.5 * part) : "0") + " %";
  follow(area, (column, height, x, y) => {
    const row = Math.min(count - 1, Math.max(0, Math.floor(height * count))), cell = row * columns + column;
    const [first, last] = heat.rows[row], [mapped, backed, swapped] = heat.mixtures[state[cell]];
    across.hidden = false;
    across.style.width = "";
    across.style.left = "0";
    across.style.top = 100 * (1 - (row + 0.5) / count) + "%";
    const name = "gfn 0x" + first.toString(16) + (first === last ? "" : "-0x" + last.toString(16));
    showTip(name + " (" + heat.pages[row] + (heat.pages[row] === 1 ? " page)" : " pages)"), [
      ["", heat.bins[column], ""],
      ["blue", "mapped by an spte", percent(mapped)],
      ["sky", "frame, no spte", percent(backed)],
      ["orange", "in swap", percent(swapped)],
      ...cells.map(([what, each]) => ["", what, format(each[cell])]),
    ], x, y);
  }, columns);
  const group = document.querySelector(".buttons");
  group.hidden = false;
  group.addEventListener("click", event => {
    const layer = event.target.dataset.show;
    if (!layer) return;
    for (const each of group.children) each.setAttribute("aria-pressed", each === event.target);
    for (const each of document.querySelectorAll("[data-layer]")) each.hidden = each.dataset.layer !== layer;
  });
}

function theme() {
  const button = document.getElementById("theme"), root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  const label = () => { button.textContent = dark() ? "light" : "dark"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  label();
}

theme();
for (const [id, chart] of Object.entries(data.charts)) followChart(id, chart);
if (data.heat) followHeat(data.heat);
})();
