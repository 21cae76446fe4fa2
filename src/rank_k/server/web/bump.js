// The bump chart: a line for each passage through the rounds, beside a list of the passages whose rows are its rows.

import { h, svg } from "/page/dom.js";

const ROW = 28; // CSS pixels; the list's rows are as high (page.css: --row)
const TOP = 26;

/**
 * Draws in `place`, an element, and fills `list`. `columns`: { label, tiers, asked } each, `asked` the set of passages
 * that the round asks about; the last one is the ranking as it ended, or stands. `passages`: { name, text, hue } each.
 * At most `most` rows, the rest lies below. `follow(passage, ranks)` hears which one is followed, or null.
 */
export function drawn(place, list, { columns, passages, most, follow }) {
  const ranks = columns.map(({ tiers }) => ranksOf(tiers, passages.length));
  const last = ranks.at(-1);
  const order = [...passages.keys()].filter(p => last[p] < most).sort((a, b) => last[a] - last[b]);
  const rows = Math.min(most, passages.length);
  const below = passages.length > rows;
  const room = list.parentElement.clientWidth * (innerWidth < 640 ? .44 : .56); // the chart scrolls beyond that
  const step = Math.max(44, Math.min(190, (room - 48) / Math.max(columns.length - 1, 1)));
  const width = 24 + step * (columns.length - 1) + 24;
  const height = TOP + (rows + (below ? 1 : 0)) * ROW;
  const x = column => 24 + column * step;
  const y = rank => TOP + (Math.min(rank, rows) + .5) * ROW;
  const lines = new Map();

  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", class: "chart" },
    columns.map(({ label }, c) => svg("text", { x: x(c), y: 15, class: "column" }, label)),
    columns.map((_, c) => svg("line", { x1: x(c), x2: x(c), y1: TOP, y2: height, class: "upright" })));
  for (const p of [...order].reverse()) {
    const path = ranks.map((rank, c) => c ? bend(x(c - 1), y(ranks[c - 1][p]), x(c), y(rank[p])) : `M${x(0)} ${y(rank[p])}`).join("");
    const dots = columns.flatMap(({ asked }, c) => asked.has(p) || c === columns.length - 1
      ? [svg("circle", { cx: x(c), cy: y(ranks[c][p]), r: 3.4 })] : []);
    const numbers = ranks.map((rank, c) => svg("text", { x: x(c), y: y(rank[p]) - 8, class: "number" }, String(rank[p] + 1)));
    const line = svg("g", { class: `line ${passages[p].hue}` },
      svg("path", { d: path, class: "ink" }), dots, numbers, svg("path", { d: path, class: "reach" }));
    line.addEventListener("pointerenter", () => followed(p));
    line.addEventListener("pointerleave", () => followed(null));
    line.addEventListener("click", () => lines.get(p).button.focus());
    picture.append(line);
    lines.set(p, { line });
  }
  place.replaceChildren(picture);
  place.scrollLeft = place.scrollWidth; // to the end, beside the list

  const tied = new Set(columns.at(-1).tiers.flatMap(tier => tier.slice(1)));
  list.replaceChildren(...order.map(p => {
    const button = h("button", {
      type: "button", class: "passage", dir: "auto", title: passages[p].text ?? "",
      onfocus: () => followed(p), onblur: () => followed(null), onpointerenter: () => followed(p), onpointerleave: () => followed(null),
    }, passages[p].text ?? passages[p].name);
    const item = h("li", { class: passages[p].hue }, h("span", { class: "rank n" },
      tied.has(p) && h("span", { class: "tie", title: "level with the one above" }, "="), String(last[p] + 1)),
      h("span", { class: "dot", "aria-hidden": "true" }), button);
    Object.assign(lines.get(p), { item, button });
    return item;
  }), ...(below ? [h("li", { class: "soft below" }, `and ${passages.length - rows} more below`)] : []));

  function followed(p) {
    picture.classList.toggle("following", p !== null);
    for (const [other, { line, item }] of lines) {
      line.classList.toggle("on", other === p);
      item.classList.toggle("on", other === p);
    }
    if (p !== null) picture.append(lines.get(p).line);
    follow(p, p === null ? [] : ranks.map(rank => rank[p] + 1));
  }

  return { mark: set => { for (const [p, { line }] of lines) line.classList.toggle("marked", set !== null && set.has(p)); picture.classList.toggle("marking", set !== null); } };
}

/** For each passage its rank in `tiers`, from 0. */
function ranksOf(tiers, count) {
  const ranks = new Array(count).fill(count);
  tiers.flat().forEach((passage, rank) => { ranks[passage] = rank; });
  return ranks;
}

const bend = (x0, y0, x1, y1) => `C${(x0 + x1) / 2} ${y0} ${(x0 + x1) / 2} ${y1} ${x1} ${y1}`;
