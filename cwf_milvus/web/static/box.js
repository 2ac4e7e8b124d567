/**
 * A box on a photo, in the photo's own pixels whatever its size on the screen.
 *
 * Drawn by mouse, touch or pen; by eight handles that take the focus and obey the arrows; or by
 * four numbers. `letGo` is called when a box is done, with null for the whole photo.
 */

import { el, svg } from "./dom.js";

const HANDLES = {
  nw: "Top left corner",
  n: "Top side",
  ne: "Top right corner",
  e: "Right side",
  se: "Bottom right corner",
  s: "Bottom side",
  sw: "Bottom left corner",
  w: "Left side",
};
const SIDES = ["Left", "Top", "Right", "Bottom"];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const A_TAP = 5; // pixels of the screen; less is no box

export class BoxTool {
  /**
   * @param stage holds the photo, and is exactly as large.
   * @param numbers where the four fields go.
   * @param letGo told the box, or null.
   */
  constructor(stage, numbers, letGo) {
    this.stage = stage;
    this.letGo = letGo;
    this.size = [1, 1];
    this.box = null;
    this.shade = svg("path", { class: "shade", "fill-rule": "evenodd" });
    this.lines = ["casing", "line"].map((part) => svg("rect", { class: part }));
    this.drawing = svg("svg", { class: "drawn", preserveAspectRatio: "none", "aria-hidden": "true" }, this.shade, this.lines);
    this.handles = Object.entries(HANDLES).map(([at, words]) => this.#handle(at, words));
    stage.append(this.drawing, ...this.handles);
    this.fields = SIDES.map((side, index) => this.#field(side, index));
    numbers.append(...this.fields.map((field, index) => el("label", {}, SIDES[index], field)));
    stage.addEventListener("pointerdown", (event) => this.#start(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    stage.addEventListener("pointerup", (event) => this.#end(event));
    stage.addEventListener("pointercancel", () => this.#cancel());
  }

  /** Show a photo of this width and height with a box, or null for the whole. */
  show(width, height, box) {
    this.size = [width, height];
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.fields.forEach((field, index) => field.setAttribute("max", this.size[index % 2]));
    this.#set(box && this.#within(box));
  }

  /** Take the whole photo. */
  whole() {
    this.drag = null;
    if (this.box === null) return;
    this.#set(null);
    this.#tell();
  }

  #edges() {
    return [0, 0, ...this.size];
  }

  /** The box, at whole pixels of the photo, at least one wide and high. */
  #within([x1, y1, x2, y2]) {
    const clamp = (value, most) => Math.min(most, Math.max(0, Math.round(value)));
    const [width, height] = this.size;
    let [left, right] = [clamp(x1, width), clamp(x2, width)].sort((a, b) => a - b);
    let [top, bottom] = [clamp(y1, height), clamp(y2, height)].sort((a, b) => a - b);
    if (left === right) [left, right] = [Math.min(left, width - 1), Math.min(left, width - 1) + 1];
    if (top === bottom) [top, bottom] = [Math.min(top, height - 1), Math.min(top, height - 1) + 1];
    return [left, top, right, bottom];
  }

  #set(box) {
    this.box = box && box.join() === this.#edges().join() ? null : box;
    const [left, top, right, bottom] = this.box ?? this.#edges();
    const [width, height] = this.size;
    this.stage.classList.toggle("whole", this.box === null);
    this.shade.setAttribute("d", `M0 0H${width}V${height}H0ZM${left} ${top}V${bottom}H${right}V${top}Z`);
    for (const line of this.lines) {
      for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) {
        line.setAttribute(name, value);
      }
    }
    for (const handle of this.handles) {
      const at = handle.dataset.at;
      const x = at.includes("w") ? left : at.includes("e") ? right : (left + right) / 2;
      const y = at.includes("n") ? top : at.includes("s") ? bottom : (top + bottom) / 2;
      handle.style.left = `${(100 * x) / width}%`;
      handle.style.top = `${(100 * y) / height}%`;
      handle.setAttribute("aria-label", `${HANDLES[at]} of the box, at ${Math.round(x)}, ${Math.round(y)}`);
    }
    [left, top, right, bottom].forEach((value, index) => {
      this.fields[index].value = value;
    });
  }

  #handle(at, words) {
    return el("button", {
      type: "button",
      class: `handle ${at}`,
      "data-at": at,
      "aria-label": words,
      "aria-describedby": "box-help",
      keydown: (event) => this.#step(event, at),
      keyup: (event) => event.key in STEPS && this.#tell(),
    });
  }

  #field(side, index) {
    const change = (event) => {
      const box = [...(this.box ?? this.#edges())];
      box[index] = Number(event.target.value);
      this.#set(this.#within(box));
      this.#tell();
    };
    return el("input", { type: "number", min: 0, inputmode: "numeric", name: side.toLowerCase(), change });
  }

  #step(event, at) {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const pixels = event.ctrlKey || event.metaKey ? 100 : event.shiftKey ? 10 : 1;
    const [dx, dy] = STEPS[event.key].map((way) => way * pixels);
    this.#set(this.#moved(this.box ?? this.#edges(), at, dx, dy));
  }

  /** The box with a handle moved; a side stops a pixel before the one across. */
  #moved([left, top, right, bottom], at, dx, dy) {
    const [width, height] = this.size;
    const between = (value, least, most) => Math.min(most, Math.max(least, Math.round(value)));
    if (at.includes("w")) left = between(left + dx, 0, right - 1);
    if (at.includes("e")) right = between(right + dx, left + 1, width);
    if (at.includes("n")) top = between(top + dy, 0, bottom - 1);
    if (at.includes("s")) bottom = between(bottom + dy, top + 1, height);
    return [left, top, right, bottom];
  }

  #place(event) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    const [x, y] = [(event.clientX - left) / width, (event.clientY - top) / height];
    return [x * this.size[0], y * this.size[1]];
  }

  #start(event) {
    if (event.button !== 0 || this.drag) return;
    const at = event.target.closest(".handle")?.dataset.at ?? null;
    if (!at) event.preventDefault(); // no text is selected, no picture dragged away
    this.stage.setPointerCapture(event.pointerId);
    const [x, y] = this.#place(event);
    this.drag = { pointer: event.pointerId, at, x, y, screen: [event.clientX, event.clientY], before: this.box, moved: false };
  }

  #move(event) {
    const drag = this.drag;
    if (drag?.pointer !== event.pointerId) return;
    const far = Math.hypot(event.clientX - drag.screen[0], event.clientY - drag.screen[1]);
    if (!drag.moved && far < A_TAP) return;
    drag.moved = true;
    const [x, y] = this.#place(event);
    if (drag.at) this.#set(this.#moved(drag.before ?? this.#edges(), drag.at, x - drag.x, y - drag.y));
    else this.#set(this.#within([drag.x, drag.y, x, y]));
  }

  #end(event) {
    const drag = this.drag;
    if (drag?.pointer !== event.pointerId) return;
    this.drag = null;
    if (drag.moved) this.#tell();
  }

  #cancel() {
    if (this.drag) this.#set(this.drag.before);
    this.drag = null;
  }

  #tell() {
    this.letGo(this.box);
  }
}
