/** The filter line: the fields offered, and what Milvus says of it when it is wrong. */

import { ask } from "./api.js";
import { byId, el } from "./dom.js";

const OFFERED = 24; // fields

export class FilterLine {
  /** @param go changes the page's state. */
  constructor(go) {
    this.line = byId("filter");
    byId("filter-form").addEventListener("submit", (event) => {
      event.preventDefault();
      go({ filter: this.line.value.trim(), photo: null });
    });
    this.line.addEventListener("search", () => this.line.value === "" && go({ filter: "" }));
    this.line.addEventListener("input", () => this.fail(null));
  }

  /** Offer the fields of a collection. */
  async offer() {
    const fields = await ask("fields").catch(() => []);
    byId("fields").replaceChildren(
      ...fields.slice(0, OFFERED).map((field) =>
        el(
          "button",
          {
            type: "button",
            title: `${field.type}, in ${field.count} photos`,
            click: () => this.#insert(`${field.name} == ${JSON.stringify(field.examples[0] ?? "")}`),
          },
          el("bdi", {}, field.name),
        ),
      ),
    );
    byId("fields-part").hidden = !fields.length;
    return fields;
  }

  /** Show the filter of a state. */
  show(filter) {
    if (document.activeElement !== this.line) this.line.value = filter;
    if (!filter) this.fail(null);
  }

  /** Say what is wrong with it; null for nothing. */
  fail(words) {
    const place = byId("filter-failure");
    place.textContent = words ?? "";
    place.hidden = !words;
    if (words) this.line.setAttribute("aria-invalid", "true");
    else this.line.removeAttribute("aria-invalid");
  }

  #insert(words) {
    const before = this.line.value.trim();
    this.line.value = before ? `${before} and ${words}` : words;
    this.line.focus();
    this.fail(null);
  }
}
