// Many things to press under one tab stop: arrows go from one to the next.

const BACK = ["ArrowUp", "ArrowLeft"];
const ON = ["ArrowDown", "ArrowRight"];

/** One tab stop for what `selector` finds in `element`, now and later: arrows, Home and End move within. */
export function oneTabStop(element, selector) {
  const all = () => [...element.querySelectorAll(selector)];
  const stop = () => all().forEach((item, at, items) => {
    item.tabIndex = item === (items.includes(document.activeElement) ? document.activeElement : items[0]) ? 0 : -1;
  });
  element.addEventListener("focusin", event => {
    if (event.target.matches(selector)) all().forEach(item => { item.tabIndex = item === event.target ? 0 : -1; });
  });
  element.addEventListener("keydown", event => {
    const items = all();
    const here = items.indexOf(event.target);
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = BACK.includes(event.key) ? here - 1 : ON.includes(event.key) ? here + 1
      : event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : null;
    if (to === null) return;
    event.preventDefault();
    items[Math.max(0, Math.min(items.length - 1, to))].focus();
  });
  stop();
  return stop;
}
