/** The service, as the page asks it. Every failure is an Error with one sentence for people. */

const RETRIES = 3; // of a request that found the house full

let collection = null;

/** Say which collection is meant from now on. */
export function choose(name) {
  collection = name;
}

/** The address of something of the collection. */
export function address(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ collection, ...parameters })) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  return query.size ? `/api/${path}?${query}` : `/api/${path}`;
}

export const thumbnail = (uri, size = 256) => address("thumbnail", { uri, size });

/** What the service answers, as JSON. */
export async function ask(path, parameters = {}, signal = undefined) {
  return (await request(address(path, parameters), { signal })).json();
}

/** Send a photo once, to search with it as often as one likes: its name, width and height. */
export async function sendPhoto(file, signal) {
  const headers = { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" };
  return (await request(address("queries"), { method: "POST", body: file, headers, signal })).json();
}

/** Have the service fetch a photo. */
export async function sendUrl(url, signal) {
  return (await post("queries", { url }, "application/json", signal)).json();
}

/** The answers to a search, the first as soon as there are hits, the last one final. */
export async function* search(asked, signal) {
  const response = await post("search", asked, "text/event-stream", signal);
  for await (const { name, data } of events(response)) {
    if (name === "failed") throw new Error(data.error);
    yield data;
  }
}

/** The final answer alone. */
export async function searchAtOnce(asked, signal) {
  return (await post("search", asked, "application/json", signal)).json();
}

/** Store photos; yields what became of each, then the counts. */
export async function* add(files, signal) {
  const body = new FormData();
  for (const file of files) body.append("photos", file);
  const response = await request(address("photos"), { method: "POST", body, signal });
  for await (const { name, data } of events(response)) {
    if (name === "failed") throw new Error(data.error);
    yield data;
  }
}

function post(path, body, accept, signal) {
  const headers = { "Content-Type": "application/json", Accept: accept };
  return request(address(path), { method: "POST", body: JSON.stringify(body), headers, signal });
}

async function request(url, options) {
  for (let tried = 0; ; tried++) {
    let response;
    try {
      response = await fetch(url, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The service does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 503 && tried < RETRIES) {
      await pause(Number(response.headers.get("Retry-After")) || 1, options.signal);
      continue;
    }
    const told = await response.json().catch(() => ({}));
    throw Object.assign(new Error(told.error ?? `The service answered ${response.status}.`), {
      status: response.status,
    });
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** Server-sent events of an answer to POST, which EventSource cannot read. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (lines.data) yield { name: lines.event, data: JSON.parse(lines.data) };
    }
  }
}
