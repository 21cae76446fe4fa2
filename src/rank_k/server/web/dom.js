// Functions that create elements. All content is inserted as text, so that strings are never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes: a function is added as an event listener (`onclick`), null and false are omitted. */
export function h(tag, attributes = {}, ...children) {
  return fillElement(document.createElement(tag), attributes, children);
}

/** An SVG element, with the same arguments as `h`. */
export function svg(tag, attributes = {}, ...children) {
  return fillElement(document.createElementNS(SVG, tag), attributes, children);
}

/** Replace the content of `element` with `children`: nodes, texts, or lists of nodes and texts. */
export function show(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(isPresent));
}

/** The element with this id. */
export const byId = id => document.getElementById(id);

/** The color class of passage number `n`, which counts from 1. Twelve colors repeat. */
export const hueClass = n => `hue-${(n - 1) % 12}`;

/** Format 1234 as 1,234. */
export const formatInteger = number => Math.round(number).toLocaleString("en");

/** Format 75 as 1 min 15 s. */
export function formatSeconds(number) {
  if (number < 10) return `${number.toFixed(1)} s`;
  if (number < 60) return `${Math.round(number)} s`;
  const minutes = Math.floor(Math.round(number) / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(number) % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** `count` with its noun: 1 window, 2 windows. */
export const pluralize = (count, noun, nouns = `${noun}s`) => `${formatInteger(count)} ${count === 1 ? noun : nouns}`;

const isPresent = child => child !== null && child !== undefined && child !== false;

function fillElement(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(isPresent));
  return element;
}
