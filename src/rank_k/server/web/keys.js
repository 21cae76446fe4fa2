// Keyboard navigation for lists of buttons: one tab stop per list, and arrow keys within it.

const BACK_KEYS = ["ArrowUp", "ArrowLeft"];
const FORWARD_KEYS = ["ArrowDown", "ArrowRight"];

/**
 * Make the elements that match `selector` in `element` a single tab stop, with arrow keys, Home and End to move between
 * them. Returns a function to call after elements have been added.
 */
export function makeSingleTabStop(element, selector) {
  const findItems = () => [...element.querySelectorAll(selector)];
  const updateTabStops = () => findItems().forEach((item, index, items) => {
    item.tabIndex = item === (items.includes(document.activeElement) ? document.activeElement : items[0]) ? 0 : -1;
  });
  element.addEventListener("focusin", event => {
    if (event.target.matches(selector)) findItems().forEach(item => { item.tabIndex = item === event.target ? 0 : -1; });
  });
  element.addEventListener("keydown", event => {
    const items = findItems();
    const current = items.indexOf(event.target);
    if (current < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = BACK_KEYS.includes(event.key) ? current - 1 : FORWARD_KEYS.includes(event.key) ? current + 1
      : event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : null;
    if (target === null) return;
    event.preventDefault();
    items[Math.max(0, Math.min(items.length - 1, target))].focus();
  });
  updateTabStops();
  return updateTabStops;
}
