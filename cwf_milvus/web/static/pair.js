/** Query and hit side by side, and what of the one answers to the other. */

import { svg } from "./dom.js";
import { boxLines, isVerified, outline } from "./frame.js";

const TALL = 600; // units of the drawing
const SPACE = 24;
const LINES = 40; // more hide the photos
const COLOURS = 5; // of the style sheet, told apart by the colour-blind

/**
 * The drawing.
 *
 * @param query its picture, width, height and box (or null for the whole).
 * @param hit as the service tells it, and its picture.
 * @param stacked one above the other, for narrow screens.
 */
export function pairOf(query, hit, stacked) {
  const [q, h] = [placed(query, stacked), placed(hit, stacked)];
  const [dx, dy] = stacked ? [0, q.height + SPACE] : [q.width + SPACE, 0];
  const [width, height] = stacked ? [TALL, dy + h.height] : [dx + h.width, TALL];
  const drawing = svg(
    "svg",
    { class: "pair", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": pairInWords(hit) },
    side(query, q, 0, 0, asked(query, hit)),
    side(hit, h, dx, dy, outline(hit)),
  );
  if (isVerified(hit)) drawing.append(...lines(hit.points, q, h, dx, dy));
  return drawing;
}

/** How large a photo is drawn. */
function placed({ width, height }, stacked) {
  const scale = stacked ? TALL / width : TALL / height;
  return { scale, width: width * scale, height: height * scale };
}

function side({ picture, width, height }, { scale }, x, y, over) {
  const place = `translate(${x} ${y}) scale(${scale})`;
  return svg("g", { transform: place }, svg("image", { href: picture, width, height }), over);
}

/** What of the query the hit answers to: the box where points tell, else the region most alike. */
function asked(query, hit) {
  const region = hit.matches?.find((match) => Array.isArray(match.query))?.query;
  if (!isVerified(hit) && region) return boxLines(region, "dashed");
  return boxLines(query.box ?? [0, 0, query.width, query.height]);
}

function lines(points, q, h, dx, dy) {
  const step = Math.max(1, Math.ceil(points.length / LINES));
  return points
    .filter((_, index) => index % step === 0)
    .flatMap(([qx, qy, hx, hy], index) => {
      const ends = { x1: qx * q.scale, y1: qy * q.scale, x2: dx + hx * h.scale, y2: dy + hy * h.scale };
      return [
        svg("line", { class: "match casing", ...ends }),
        svg("line", { class: `match colour-${index % COLOURS}`, ...ends }),
      ];
    });
}

function pairInWords(hit) {
  if (isVerified(hit)) return `The query beside the hit: ${hit.inliers} points agree, joined by lines`;
  return "The query beside the hit, each with the region most alike";
}
