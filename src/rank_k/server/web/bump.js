// The bump chart: a line for each passage that shows its rank in every round, next to the list of passages.

import { h, svg } from "/page/dom.js";

const ROW = 28; // CSS pixels; the rows of the list have the same height (page.css: --row)
const TOP = 26;

/**
 * Draw the chart in the element `container` and fill `list`. `columns`: the rankings, each as { label, tiers, compared },
 * where `compared` is the set of passages that the next round compares. `passages`: each as { name, text, hue }. The chart
 * has at most `maxRows` rows. `onFollow(passage, ranks)` is called with the highlighted passage and its ranks, or with null.
 */
export function drawBumpChart(container, list, { columns, passages, maxRows, onFollow }) {
  const ranks = columns.map(({ tiers }) => passageRanks(tiers, passages.length));
  const last = ranks.at(-1);
  const order = [...passages.keys()].filter(p => last[p] < maxRows).sort((a, b) => last[a] - last[b]);
  const rows = Math.min(maxRows, passages.length);
  const hasMore = passages.length > rows;
  const availableWidth = list.parentElement.clientWidth * (innerWidth < 640 ? .44 : .56); // the chart scrolls beyond that
  const columnWidth = Math.max(44, Math.min(190, (availableWidth - 48) / Math.max(columns.length - 1, 1)));
  const width = 24 + columnWidth * (columns.length - 1) + 24;
  const height = TOP + (rows + (hasMore ? 1 : 0)) * ROW;
  const x = column => 24 + column * columnWidth;
  const y = rank => TOP + (Math.min(rank, rows) + .5) * ROW;
  const lines = new Map();

  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", class: "chart" },
    columns.map(({ label }, c) => svg("text", { x: x(c), y: 15, class: "column" }, label)),
    columns.map((_, c) => svg("line", { x1: x(c), x2: x(c), y1: TOP, y2: height, class: "upright" })));
  for (const p of [...order].reverse()) {
    const path = ranks.map((rank, c) => c ? curve(x(c - 1), y(ranks[c - 1][p]), x(c), y(rank[p])) : `M${x(0)} ${y(rank[p])}`).join("");
    const dots = columns.flatMap(({ compared }, c) => compared.has(p) || c === columns.length - 1
      ? [svg("circle", { cx: x(c), cy: y(ranks[c][p]), r: 3.4 })] : []);
    const numbers = ranks.map((rank, c) => svg("text", { x: x(c), y: y(rank[p]) - 8, class: "number" }, String(rank[p] + 1)));
    const line = svg("g", { class: `line ${passages[p].hue}` },
      svg("path", { d: path, class: "ink" }), dots, numbers, svg("path", { d: path, class: "reach" }));
    line.addEventListener("pointerenter", () => setFollowed(p));
    line.addEventListener("pointerleave", () => setFollowed(null));
    line.addEventListener("click", () => lines.get(p).button.focus());
    chart.append(line);
    lines.set(p, { line });
  }
  container.replaceChildren(chart);
  container.scrollLeft = container.scrollWidth; // to the end, beside the list

  const tiedPassages = new Set(columns.at(-1).tiers.flatMap(tier => tier.slice(1)));
  list.replaceChildren(...order.map(p => {
    const button = h("button", {
      type: "button", class: "passage", dir: "auto", title: passages[p].text ?? "",
      onfocus: () => setFollowed(p), onblur: () => setFollowed(null), onpointerenter: () => setFollowed(p), onpointerleave: () => setFollowed(null),
    }, passages[p].text ?? passages[p].name);
    const item = h("li", { class: passages[p].hue }, h("span", { class: "rank n" },
      tiedPassages.has(p) && h("span", { class: "tie", title: "tied with the passage above" }, "="), String(last[p] + 1)),
      h("span", { class: "dot", "aria-hidden": "true" }), button);
    Object.assign(lines.get(p), { item, button });
    return item;
  }), ...(hasMore ? [h("li", { class: "soft below" }, `and ${passages.length - rows} more below`)] : []));

  function setFollowed(p) {
    chart.classList.toggle("following", p !== null);
    for (const [other, { line, item }] of lines) {
      line.classList.toggle("on", other === p);
      item.classList.toggle("on", other === p);
    }
    if (p !== null) chart.append(lines.get(p).line);
    onFollow(p, p === null ? [] : ranks.map(rank => rank[p] + 1));
  }

  return { mark: set => { for (const [p, { line }] of lines) line.classList.toggle("marked", set !== null && set.has(p)); chart.classList.toggle("marking", set !== null); } };
}

/** The rank of each passage in `tiers`, from 0. */
function passageRanks(tiers, count) {
  const ranks = new Array(count).fill(count);
  tiers.flat().forEach((passage, rank) => { ranks[passage] = rank; });
  return ranks;
}

const curve = (x0, y0, x1, y1) => `C${(x0 + x1) / 2} ${y0} ${(x0 + x1) / 2} ${y1} ${x1} ${y1}`;
