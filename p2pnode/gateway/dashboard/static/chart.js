// Small charts as SVG: a line over time, and bars by day. Each says in words what it shows.

import { h, s } from "./dom.js";

const WIDE = 640;
const HIGH = 140;
const LEFT = 46;
const BELOW = 18;

// points: [{at, value}], at in epoch seconds; text(value) writes a value.
export function line(title, points, text) {
  if (points.length < 2) return h("p", { class: "empty" }, `${title}: the second sample comes within a minute.`);
  const most = Math.max(...points.map((each) => each.value)) || 1;
  const [from, to] = [points[0].at, points[points.length - 1].at];
  const x = (at) => LEFT + ((at - from) / (to - from || 1)) * (WIDE - LEFT - 6);
  const y = (value) => 8 + (1 - value / most) * (HIGH - BELOW - 12);
  const path = points.map((each, index) => `${index ? "L" : "M"}${x(each.at).toFixed(1)} ${y(each.value).toFixed(1)}`).join("");
  const last = points[points.length - 1].value;
  const said = `${title}: ${text(last)} now, between ${text(Math.min(...points.map((each) => each.value)))} and ${text(most)} since ${clock(from)}.`;
  return figure(title, said, text(last),
    s("path", { class: "area", d: `${path}L${x(to).toFixed(1)} ${y(0)}L${x(from).toFixed(1)} ${y(0)}Z` }),
    s("path", { class: "line", d: path }),
    axis(y(0), text(0), y(most), text(most)),
    s("text", { x: LEFT, y: HIGH - 3 }, clock(from)),
    s("text", { x: WIDE - 6, y: HIGH - 3, "text-anchor": "end" }, clock(to)));
}

// rows: [{name, value}] in order.
export function bars(title, rows, text) {
  const most = Math.max(...rows.map((each) => each.value), 0) || 1;
  const wide = (WIDE - LEFT - 6) / rows.length;
  const high = (value) => (value / most) * (HIGH - BELOW - 12);
  const total = rows.reduce((sum, each) => sum + each.value, 0);
  const said = `${title}: ${text(total)} in all, ${text(rows[rows.length - 1].value)} on ${rows[rows.length - 1].name}.`;
  return figure(title, said, text(total),
    rows.map((each, index) => s("rect", { class: "bar", x: (LEFT + index * wide + 1).toFixed(1), y: (HIGH - BELOW - 4 - high(each.value)).toFixed(1), width: Math.max(1, wide - 2).toFixed(1), height: Math.max(high(each.value), each.value ? 1 : 0).toFixed(1) }, s("title", null, `${each.name}: ${text(each.value)}`))),
    axis(HIGH - BELOW - 4, "", 8, text(most)),
    s("text", { x: LEFT, y: HIGH - 3 }, rows[0].name),
    s("text", { x: WIDE - 6, y: HIGH - 3, "text-anchor": "end" }, rows[rows.length - 1].name));
}

function figure(title, said, now, ...drawn) {
  return h("figure", { class: "chart" },
    h("figcaption", null, h("span", null, title), h("strong", null, now)),
    s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": said }, ...drawn));
}

function axis(low, lowText, high, highText) {
  return [
    s("path", { class: "axis", d: `M${LEFT} ${low}H${WIDE - 6}M${LEFT} ${high}H${WIDE - 6}` }),
    s("text", { x: LEFT - 6, y: low, "text-anchor": "end" }, bare(lowText)),
    s("text", { x: LEFT - 6, y: high + 8, "text-anchor": "end" }, bare(highText)),
  ];
}

// Without its unit, for which an axis has no room.
function bare(text) {
  return text.split(" ")[0];
}

function clock(at) {
  const date = new Date(at * 1000);
  const options = Date.now() / 1000 - at > 86400 ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit" };
  return date.toLocaleString("en-GB", options);
}
