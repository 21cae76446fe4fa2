// Judging: one question at a time, by keys or buttons. The server keeps what is said and knows where a judge stands;
// here is only the name. Texts are shown as text, each line in its own direction.

import { download, got, posted } from "/page/api.js";
import { at, h, many, show } from "/page/dom.js";

const KEPT = "rank-k judge";
const KEYS = { 1: "left", 2: "right", 0: "tie" };
const SAID = { left: "Ranking 1 preferred", right: "Ranking 2 preferred", tie: "No difference" };
const TOO_SOON = 300; // milliseconds: a key pressed twice is not a judgment of what comes next

let judge = localStorage.getItem(KEPT) ?? "";
let state = null;
let busy = false;
let watched = 0; // milliseconds of the question in sight, before `since`
let since = null; // when it came in sight; null while it is not

const parts = ["none", "welcome", "work", "end"];
const only = name => parts.forEach(part => { at(part).hidden = part !== name; });

/** Do `work`, which brings the state that is shown next; say what went wrong, and change nothing then. */
async function go(work, heard) {
  if (busy) return;
  busy = true;
  at("told").hidden = true;
  document.querySelectorAll(".choices button").forEach(button => { button.disabled = true; });
  try {
    state = await work();
    shown(heard);
  } catch (refused) {
    if (refused.status === undefined) throw refused;
    failed(refused);
  } finally {
    busy = false;
    document.querySelectorAll(".choices button").forEach(button => { button.disabled = false; button.classList.remove("chosen"); });
  }
}

function failed(refused) {
  if (!state) only("welcome");
  at("told").hidden = false;
  show(at("told"), refused.message);
}

const begin = () => go(() => got(`/judge/question?judge=${encodeURIComponent(judge)}`));

function choose(choice) {
  if (!state?.question || busy || performance.now() - (since ?? Infinity) + watched < TOO_SOON) return;
  const seconds = (watched + (since === null ? 0 : performance.now() - since)) / 1000;
  document.querySelector(`[data-choice=${choice}]`).classList.add("chosen");
  go(() => posted("/judge/choice", { judge, token: state.question.token, choice, seconds }), SAID[choice]);
}

function undo() {
  if (state?.can_undo) go(() => posted("/judge/undo", { judge }), "Taken back");
}

function shown(heard) {
  const { question, done, total, identical } = state;
  only(question ? "work" : "end");
  at("foot").hidden = false;
  show(at("who"), state.judge);
  show(at("heard"), heard ? `${heard}. ` : "", `${done} of ${total} judged.`);
  if (question) {
    show(at("count"), `${done} of ${total} judged`);
    Object.assign(at("progress"), { max: total, value: done });
    at("undo").disabled = !state.can_undo;
    show(at("asked"), question.query);
    at("asked").dir = "auto";
    at("asked").classList.toggle("long", question.query.length > 140);
    at("translation").hidden = question.translation === null;
    at("translation").dir = "auto";
    show(at("translation"), question.translation ?? "");
    show(at("left"), ranking(question.left, question.right, "ranking 2"));
    show(at("right"), ranking(question.right, question.left, "ranking 1"));
    inFull(false);
    at("asked").focus({ preventScroll: true });
  } else {
    show(at("end-told"), `You have judged ${many(done, "pair")} of rankings.`,
      identical ? ` Where both rankings are the same (${identical}), nothing was asked.` : "");
    at("undo-last").hidden = !state.can_undo;
    at("end-title").focus({ preventScroll: true });
  }
  scrollTo({ top: 0, behavior: "instant" });
  watched = 0;
  since = document.hidden ? null : performance.now();
}

/** The passages of a ranking. `others`: those of the other one, to say where the same passage stands there. */
function ranking(passages, others, there) {
  const places = new Map(others.map((passage, place) => [passage.number, place + 1]));
  return passages.map(({ number, text, truncated }, place) => {
    const id = `${there.at(-1)}-${place}`;
    const body = h("div", { class: "wording short", dir: "auto", id }, text);
    const more = h("button", { type: "button", class: "plain small more", "aria-expanded": "false", "aria-controls": id, hidden: true,
      onclick: () => expand(more, body, body.classList.contains("short")) });
    return h("li", { class: "offered", "data-number": number,
      onpointerenter: () => mark(number, true), onpointerleave: () => mark(number, false) },
      h("span", { class: "place", "aria-hidden": "true" }, place + 1),
      h("div", {}, body, h("div", { class: "under small soft" }, more,
        truncated && h("span", {}, "Only the beginning is shown."),
        places.has(number) && h("span", {}, `no. ${places.get(number)} in ${there}`))));
  });
}

/** The same passage on both sides, while it is pointed at. */
function mark(number, on) {
  const same = document.querySelectorAll(`.offered[data-number="${number}"]`);
  same.forEach(item => item.classList.toggle("same", on && same.length > 1));
}

function expand(button, body, full) {
  body.classList.toggle("short", !full);
  button.setAttribute("aria-expanded", full);
  show(button, full ? "Show less" : "Show all", h("span", { class: "unseen" }, ` of passage ${Number(body.id.split("-")[1]) + 1}`));
}

/** All passages in full, or all short; where a short one shows everything, there is nothing to press. */
function inFull(full) {
  at("all").setAttribute("aria-pressed", full);
  show(at("all"), full ? "Show all short" : "Show all in full", " ", h("kbd", {}, "X"));
  const bodies = [...document.querySelectorAll(".sides .wording")];
  bodies.forEach(body => expand(body.parentElement.querySelector(".more"), body, false));
  const long = bodies.map(body => body.scrollHeight > body.clientHeight + 2);
  bodies.forEach((body, place) => {
    const more = body.parentElement.querySelector(".more");
    more.hidden = !long[place];
    if (long[place]) expand(more, body, full);
  });
  at("all").disabled = !long.some(Boolean);
}

const allInFull = () => inFull(at("all").getAttribute("aria-pressed") !== "true");

async function save() {
  try {
    await download("/judge/judgments.jsonl", "judgments.jsonl");
  } catch (refused) {
    if (refused.status === undefined) throw refused;
    failed(refused);
  }
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || at("work").hidden && at("end").hidden) return;
  if (event.target.closest("input, textarea, select, dialog")) return;
  const key = event.key.toLowerCase();
  if (key in KEYS) choose(KEYS[key]);
  else if (key === "u") undo();
  else if (key === "x" && !at("work").hidden) allInFull();
  else return;
  event.preventDefault();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== null) {
    watched += performance.now() - since;
    since = null;
  } else if (!document.hidden) since ??= performance.now();
});

document.querySelectorAll("[data-choice]").forEach(button => button.addEventListener("click", () => choose(button.dataset.choice)));
at("undo").addEventListener("click", undo);
at("undo-last").addEventListener("click", undo);
at("all").addEventListener("click", allInFull);
at("download").addEventListener("click", save);
at("leave").addEventListener("click", () => {
  localStorage.removeItem(KEPT);
  location.reload();
});
at("enter").addEventListener("submit", event => {
  event.preventDefault();
  judge = at("name").value.trim();
  if (!judge) return;
  localStorage.setItem(KEPT, judge);
  begin();
});
let width = innerWidth;
addEventListener("resize", () => { // a phone's bars come and go: only the width says how long texts are
  if (width !== innerWidth && state?.question) inFull(at("all").getAttribute("aria-pressed") === "true");
  width = innerWidth;
});

try {
  const rooms = await got("/page/rooms.json");
  if (!rooms.includes("judge")) only("none");
  else if (judge) begin();
  else only("welcome");
} catch (refused) {
  if (refused.status === undefined) throw refused;
  failed(refused);
}
