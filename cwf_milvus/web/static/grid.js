/**
 * A grid of any number of cards, of which the document holds those on the screen.
 *
 * One card is in the tab order; the arrows, Home and End go from card to card.
 */

import { el } from "./dom.js";

const GAP = 16;
const LEAST = { narrow: 148, wide: 190 }; // pixels of a card's width; two fit on any phone
const WIDE = 480;
const ROWS_BEYOND = 2; // above and below the screen

export class Grid {
  /**
   * @param list an empty `ul`.
   * @param source `length`, `get(index)` with undefined for what is still to come, and
   *   `need(first, last)`, told which are on the screen.
   * @param card makes the button of an item.
   * @param sizes height of a card's caption in rem.
   */
  constructor(list, source, card, { caption }) {
    Object.assign(this, { list, source, card, caption });
    this.cells = new Map();
    this.active = 0;
    this.columns = 1;
    new ResizeObserver(() => this.#layOut()).observe(list);
    addEventListener("scroll", () => this.draw(), { passive: true });
    list.addEventListener("keydown", (event) => this.#go(event));
    list.addEventListener("focusin", (event) => {
      const cell = event.target.closest("li");
      if (cell) this.#activate(Number(cell.dataset.index));
    });
  }

  /** Show other items, or the same ones in another order; the focus stays in the grid. */
  renew() {
    const had = this.list.contains(document.activeElement);
    for (const cell of this.cells.values()) cell.remove();
    this.cells.clear();
    this.active = Math.min(this.active, Math.max(0, this.source.length - 1));
    this.#layOut();
    if (had) this.#focus(this.active);
  }

  #layOut() {
    const width = this.list.clientWidth;
    if (!width) return; // not on the screen
    const least = width < WIDE ? LEAST.narrow : LEAST.wide;
    this.columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    this.wide = (width - GAP * (this.columns - 1)) / this.columns;
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.tall = this.wide * 0.75 + this.caption * rem;
    for (const [index, cell] of this.cells) this.#put(cell, index);
    this.draw();
  }

  /** Bring the document up to what is on the screen. */
  draw() {
    if (!this.list.clientWidth || !this.tall) return;
    const step = this.tall + GAP;
    const { length } = this.source;
    const rows = Math.ceil(length / this.columns);
    this.list.style.height = `${Math.max(0, rows * step - GAP)}px`;
    const top = -this.list.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / step) - ROWS_BEYOND) * this.columns;
    const last = Math.min(length, (Math.ceil((top + innerHeight) / step) + ROWS_BEYOND) * this.columns);
    const keep = this.list.contains(document.activeElement) ? this.active : -1;
    for (const [index, cell] of this.cells) {
      const is_late = cell.dataset.waiting && this.source.get(index) !== undefined;
      if (((index < first || index >= last) && index !== keep) || is_late) {
        cell.remove();
        this.cells.delete(index);
      }
    }
    for (let index = last - 1; index >= first; index--) {
      if (this.cells.has(index)) continue;
      const cell = this.#cell(index);
      this.cells.set(index, cell);
      this.list.insertBefore(cell, this.#after(index));
    }
    if (last > first) this.source.need(first, last);
  }

  #after(index) {
    const later = [...this.cells.keys()].filter((other) => other > index);
    return later.length ? this.cells.get(Math.min(...later)) : null;
  }

  #cell(index) {
    const item = this.source.get(index);
    const cell = el("li", { "data-index": index, "aria-posinset": index + 1, "aria-setsize": this.source.length });
    if (item === undefined) cell.dataset.waiting = "true";
    else {
      const button = this.card(item, index);
      button.tabIndex = index === this.active ? 0 : -1;
      cell.append(button);
    }
    this.#put(cell, index);
    return cell;
  }

  #put(cell, index) {
    cell.style.width = `${this.wide}px`;
    cell.style.height = `${this.tall}px`;
    cell.style.insetInlineStart = `${(index % this.columns) * (this.wide + GAP)}px`;
    cell.style.top = `${Math.floor(index / this.columns) * (this.tall + GAP)}px`;
  }

  #activate(index) {
    const before = this.cells.get(this.active)?.querySelector("button");
    if (before) before.tabIndex = -1;
    this.active = index;
    const now = this.cells.get(index)?.querySelector("button");
    if (now) now.tabIndex = 0;
  }

  #focus(index) {
    this.#activate(index);
    this.cells.get(index)?.querySelector("button")?.focus();
  }

  #go(event) {
    const towards = getComputedStyle(this.list).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: towards, ArrowLeft: -towards, ArrowDown: this.columns, ArrowUp: -this.columns };
    const last = this.source.length - 1;
    let index;
    if (event.key in steps) index = this.active + steps[event.key];
    else if (event.key === "Home") index = 0;
    else if (event.key === "End") index = last;
    else return;
    event.preventDefault();
    if (index < 0 || index > last) return;
    const top = this.list.getBoundingClientRect().top + Math.floor(index / this.columns) * (this.tall + GAP);
    if (top < 0 || top + this.tall > innerHeight) scrollBy(0, top - (innerHeight - this.tall) / 2);
    this.#activate(index);
    this.draw();
    this.#focus(index);
  }
}
