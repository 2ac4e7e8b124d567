/** Elements made of names, attributes and children. Text is always text: no markup is ever read. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element. Attributes that are functions are listeners; null and false are left out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An element of SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A stored photo, small. One that cannot be read any more is a labelled gap. */
export function photo(source, words) {
  const picture = el("img", {
    src: source,
    alt: words,
    decoding: "async",
    draggable: "false",
    error: () => picture.replaceWith(el("span", { class: "gap" }, "This photo cannot be read any more.")),
  });
  return picture;
}

/** A name from outside, whatever its script and length, in a line of its own. */
export function named(text, tag = "span", attributes = {}) {
  return el(tag, { class: "name", dir: "auto", title: text, ...attributes }, text);
}

/** A value of a field, as text of a length that a page can hold. */
export function shown(value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return text.length > 400 ? `${text.slice(0, 400)} …` : text;
}

/** The fields of a photo as a list of terms, or nothing. */
export function fieldList(fields) {
  const entries = Object.entries(fields ?? {});
  if (!entries.length) return null;
  return el(
    "dl",
    { class: "fields" },
    entries.flatMap(([name, value]) => [
      el("dt", { dir: "auto" }, name),
      el("dd", { dir: "auto" }, shown(value)),
    ]),
  );
}
