// Servers whose cost is a stated model. Work is waiting by the model's clock, so a server takes
// little of the CPU that it shares with the client that is measured.
//
//     node simulated.mjs NAME [--port 0] [--speed 1] [--max-client-batch-size 32]
//                             [--refuse-batch-size 0]
//
// The models, in ms. n: texts of a request, t: tokens of a text (its words), T: the longest t.
//
//     NAME        one at a time   cost
//     sequential  request         3 + sum of (4 + 0.01 t): a list is worked through; the parameter
//                                 batch_size changes nothing
//     toolkit     request         the same, and in padded groups with parameters.batch_size:
//                                 3 + sum over groups of (8 + 0.01 n T)
//     padded      request         8 + 0.01 n T
//     dynamic     batch of tokens 6 + 0.008 x sum of t, for up to 16,384 tokens of any requests.
//                                 512 permits, one a text: without enough of them, 429; more than
//                                 32 texts in a request: 413. Speaks as TEI does.
//     knee        request         20 + 0.4 n up to 128 texts, then 1.2 for each further one; more
//                                 than 256: 400, CUDA out of memory, after 5
//     serverless  nothing         50 + 1 n, any number at once; 10 requests a second, and 10 more
//                                 at once after a pause, whatever they hold; beyond that: 429
//
// --speed divides every cost. What is one at a time queues first come, first served, and a caller
// that leaves gives up its place. A label is a function of the text alone; a score too, but for
// 1e-7 where a text was padded.
//
// Prints its address as one line of JSON, and ends when standard input, if that is a pipe, closes.
// GET /stats tells what was done since the last POST /reset, which also empties the queue.
import fs from "node:fs";
import http from "node:http";
import zlib from "node:zlib"; // crc32 needs node 20.15

const [name, ...rest] = process.argv.slice(2);
const options = { port: 0, speed: 1, "max-client-batch-size": 32, "refuse-batch-size": 0 };
for (let i = 0; i < rest.length; i += 2) {
  const option = rest[i].replace(/^--/, "");
  if (!(option in options)) throw new Error(`unknown option: ${rest[i]}`);
  options[option] = Number(rest[i + 1]);
}

const LABELS = ["NEGATIVE", "NEUTRAL", "POSITIVE"];
const REVISION = "5130a1ed".repeat(5);
const PERMITS = 512;
const MAX_BATCH_TOKENS = 16_384;
const KNEE = 128;
const MOST_AT_KNEE = 256;
const REQUESTS_A_SECOND = 10;
const KNOWN_PARAMETERS = new Set(["top_k", "function_to_apply", "truncation", "max_length", "padding"]);
if (!options["refuse-batch-size"]) KNOWN_PARAMETERS.add("batch_size");

const sum = (values) => values.reduce((a, b) => a + b, 0);
const padded = (tokens) => tokens.length * Math.max(...tokens);

// By name: ms for the tokens of each text of a request, and its parameter batch_size.
const COSTS = {
  sequential: (tokens) => 3 + sum(tokens.map((t) => 4 + 0.01 * t)),
  toolkit: (tokens, size) =>
    size > 1 ? 3 + sum(groups(tokens, size).map((group) => COSTS.padded(group))) : COSTS.sequential(tokens),
  padded: (tokens) => 8 + 0.01 * padded(tokens),
  dynamic: (tokens) => 6 + 0.008 * sum(tokens),
  knee: ({ length: n }) => (n > MOST_AT_KNEE ? 5 : 20 + 0.4 * Math.min(n, KNEE) + 1.2 * Math.max(0, n - KNEE)),
  serverless: ({ length: n }) => 50 + n,
};
if (!(name in COSTS)) throw new Error(`no such server: ${name}; one of ${Object.keys(COSTS).join(", ")}`);
// How many texts are padded together, if any are.
const groupOf = (n, size) => (name === "padded" ? n : name === "toolkit" && size > 1 ? size : 1);

function groups(items, size) {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size));
}

function tokensOf(text) {
  let spaces = 0;
  for (let at = text.indexOf(" "); at >= 0; at = text.indexOf(" ", at + 1)) spaces++;
  return spaces + 1;
}

function answerOf(text, topK, wasPadded) {
  const hash = zlib.crc32(text);
  const best = 0.5 + ((hash >>> 8) % 400_000) / 1e6 + (wasPadded ? 1e-7 : 0);
  const scores = [best, (1 - best) * 0.75, (1 - best) * 0.25];
  const one = (i) => `{"label":"${LABELS[(hash + i) % 3]}","score":${scores[i]}}`;
  return `[${[0, 1, 2].slice(0, topK ?? 3).map(one).join(",")}]`;
}

// The clock of the model: what waits, what is under way, and when that ends. A timer that fires
// late delays an answer and not the work behind it, which begins when the model says.
let waiting = [];
let first = 0; // of `waiting`: what is before it has gone
let working = null;
let freeAt = 0;
const now = () => performance.timeOrigin + performance.now();

function pump() {
  if (working !== null) return;
  const batch = nextBatch();
  if (batch.length === 0) return;
  working = batch;
  const began = Math.max(freeAt, batch[0].arrived);
  freeAt = began + COSTS[name](batch.flatMap((r) => r.tokens), batch[0].size) / options.speed;
  setTimeout(() => {
    if (working !== batch) return; // a reset came between
    working = null;
    batch.forEach(finish);
    pump();
  }, freeAt - now());
}

function nextBatch() {
  const batch = [];
  let tokens = 0;
  for (; first < waiting.length; first++) {
    const request = waiting[first];
    if (request.gone) continue;
    if (batch.length > 0 && (name !== "dynamic" || tokens + sum(request.tokens) > MAX_BATCH_TOKENS)) break;
    tokens += sum(request.tokens);
    batch.push(request);
  }
  if (first > 1_000) { waiting = waiting.slice(first); first = 0; }
  return batch;
}

let permits = PERMITS;
let allowance = REQUESTS_A_SECOND; // how many requests may come at once, as of `allowanceAt`
let allowanceAt = 0;

let stats;
function reset() {
  for (const request of [...waiting.slice(first), ...(working ?? [])]) request.response.destroy();
  waiting = []; first = 0; working = null; freeAt = 0; permits = PERMITS; allowance = REQUESTS_A_SECOND;
  // `completed`: [when, in ms since 1970, texts, requests, tokens] of each ms in which work was done;
  // `sizes`: requests done by their number of texts.
  stats = { completed: [], texts: 0, requests: 0, refused: {}, sizes: {}, tokens: 0, padded_tokens: 0,
            in_flight: 0, peak_in_flight: 0, first_at: null };
}
reset();

function finish(request) {
  const { texts, tokens, response } = request;
  permits = Math.min(PERMITS, permits + texts.length);
  if (request.gone) return;
  if (name === "knee" && texts.length > MOST_AT_KNEE) {
    refuse(response, 400, { error: "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total " +
      "capacity of 14.58 GiB of which 0.98 GiB is free." });
    return;
  }
  const at = Math.round(now());
  const last = stats.completed.at(-1);
  const words = sum(tokens);
  if (last !== undefined && last[0] === at) { last[1] += texts.length; last[2] += 1; last[3] += words; }
  else stats.completed.push([at, texts.length, 1, words]);
  stats.texts += texts.length;
  stats.requests += 1;
  stats.sizes[texts.length] = (stats.sizes[texts.length] ?? 0) + 1;
  const answers = [];
  for (const group of groups(texts.map((text, i) => [text, tokens[i]]), groupOf(texts.length, request.size))) {
    const longest = Math.max(...group.map(([, t]) => t));
    stats.padded_tokens += group.length * longest;
    for (const [text, t] of group) answers.push(answerOf(text, request.topK, t < longest));
  }
  stats.tokens += words;
  reply(response, 200, request.flat ? answers[0] : `[${answers.join(",")}]`);
}

function refuse(response, status, body, headers = {}) {
  stats.refused[status] = (stats.refused[status] ?? 0) + 1;
  reply(response, status, JSON.stringify(body), headers);
}

function reply(response, status, text, headers = {}) {
  const body = Buffer.from(text);
  response.writeHead(status, { "Content-Type": "application/json", "Content-Length": body.length,
                               "x-sha": REVISION, ...headers });
  response.end(body);
}

function info() {
  return { model_id: "simulated", model_sha: REVISION, model_dtype: "float16",
           model_type: { classifier: { id2label: { ...LABELS }, label2id: { NEGATIVE: 0, NEUTRAL: 1, POSITIVE: 2 } } },
           max_concurrent_requests: PERMITS, max_input_length: 512, max_batch_tokens: MAX_BATCH_TOKENS,
           max_batch_requests: null, max_client_batch_size: options["max-client-batch-size"],
           auto_truncate: true, version: "1.9.0" };
}

// The texts of a request, and whether it is one outside a list; null if it is malformed. TEI reads a
// list of one or two texts as one input.
function textsOf(inputs) {
  const isText = (each) => typeof each === "string";
  if (isText(inputs)) return { texts: [inputs], flat: true };
  if (!Array.isArray(inputs)) return null;
  if (name !== "dynamic") return inputs.every(isText) ? { texts: inputs, flat: false } : null;
  const isInput = (each) => Array.isArray(each) && (each.length === 1 || each.length === 2) && each.every(isText);
  if (isInput(inputs)) return { texts: [inputs.join(" ")], flat: true };
  return inputs.every(isInput) ? { texts: inputs.map((each) => each.join(" ")), flat: false } : null;
}

// What refuses a request of n texts before any work: [status, body], or undefined.
function refusal(n, parameters) {
  if (name === "dynamic") {
    const most = options["max-client-batch-size"];
    if (n === 0) return [422, { error: "`inputs` cannot be empty", error_type: "Empty" }];
    if (n > most) {
      return [413, { error: `batch size ${n} > maximum allowed batch size ${most}`, error_type: "Validation" }];
    }
    if (n > permits) return [429, { error: "Model is overloaded", error_type: "Overloaded" }];
    return undefined;
  }
  const unknown = Object.keys(parameters).find((key) => !KNOWN_PARAMETERS.has(key));
  if (unknown !== undefined) {
    return [400, { error: `_batch_encode_plus() got an unexpected keyword argument '${unknown}'` }];
  }
  if (name === "serverless") {
    const at = performance.now();
    allowance = Math.min(REQUESTS_A_SECOND, allowance + ((at - allowanceAt) / 1000) * REQUESTS_A_SECOND);
    allowanceAt = at;
    if (allowance < 1) return [429, { error: "Rate limit reached. Please log in or use a HF access token" }];
    allowance -= 1;
  }
  return undefined;
}

function classify(response, pieces) {
  let body;
  try { body = JSON.parse(Buffer.concat(pieces)); } catch { return refuse(response, 400, { error: "bad JSON" }); }
  const found = textsOf(body.inputs);
  if (found === null) return refuse(response, name === "dynamic" ? 422 : 400, { error: "inputs: not understood" });
  const { texts, flat } = found;
  const parameters = body.parameters ?? {};
  const refused = refusal(texts.length, parameters);
  if (refused !== undefined) return refuse(response, ...refused);
  if (texts.length === 0) return reply(response, 200, "[]");
  const request = { texts, flat, response, tokens: texts.map(tokensOf), arrived: now(), gone: false,
                    topK: name === "dynamic" ? null : parameters.top_k, size: parameters.batch_size ?? 1 };
  permits -= texts.length;
  stats.first_at ??= request.arrived;
  stats.peak_in_flight = Math.max(stats.peak_in_flight, ++stats.in_flight);
  const counted = stats;
  response.on("close", () => {
    counted.in_flight--;
    if (response.writableFinished) return;
    request.gone = true;
    // What is under way is worked to its end, and gives its permits back then.
    if (waiting.indexOf(request, first) >= 0) permits = Math.min(PERMITS, permits + texts.length);
  });
  if (name === "serverless") {
    setTimeout(() => counted === stats && finish(request), COSTS.serverless(request.tokens) / options.speed);
  } else {
    waiting.push(request);
    pump();
  }
}

const server = http.createServer((request, response) => {
  if (request.method === "GET") {
    if (request.url === "/stats") reply(response, 200, JSON.stringify(stats));
    else if (request.url === "/info" && name === "dynamic") reply(response, 200, JSON.stringify(info()));
    else reply(response, 404, '{"error":"Not Found"}');
    return;
  }
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    if (request.url !== "/reset") { classify(response, pieces); return; }
    reset();
    reply(response, 200, "{}");
  });
});
server.keepAliveTimeout = 60_000;
server.listen(options.port, "127.0.0.1", () => {
  console.log(JSON.stringify({ server: name, url: `http://127.0.0.1:${server.address().port}` }));
});
if (fs.fstatSync(0).isFIFO()) process.stdin.on("end", () => process.exit(0)).resume();
