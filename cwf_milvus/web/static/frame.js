/** What is drawn over photos: where the thing is. */

import { svg } from "./dom.js";

/** Whether keypoints put the frame there; otherwise it is only the region most alike. */
export const isVerified = (hit) => hit.framed_by === "points" && Boolean(hit.polygon);

/** The thing framed on a hit: a solid polygon where verified, a dashed box where only a region. */
export function frameOf(hit) {
  const drawing = svg("svg", {
    class: "frame",
    viewBox: `0 0 ${hit.width} ${hit.height}`,
    "aria-hidden": "true",
  });
  drawing.append(...outline(hit));
  return drawing;
}

/** The lines of a frame, cased so that they show on any photo. */
export function outline(hit) {
  if (isVerified(hit)) {
    const points = hit.polygon.map((corner) => corner.join(",")).join(" ");
    return ["casing", "line"].map((part) => svg("polygon", { class: part, points }));
  }
  return hit.box ? boxLines(hit.box, "dashed") : [];
}

/** A box, cased. */
export function boxLines([left, top, right, bottom], style = "") {
  return ["casing", "line"].map((part) =>
    svg("rect", { class: `${part} ${style}`, x: left, y: top, width: right - left, height: bottom - top }),
  );
}

/** What the frame on a hit says, for those who do not see it. */
export function frameInWords(hit) {
  if (isVerified(hit)) return `framed where ${hit.inliers} points agree`;
  return hit.box ? "with the region most alike" : "";
}
