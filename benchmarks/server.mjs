// The endpoint that is measured against: answers as many lists of one label as a request has
// inputs, from a process of its own, and as fast as node's http module goes.
//
//     node server.mjs [--port 0] [--latency-ms 0]
//
// Prints its address as one line of JSON, and ends when standard input closes. GET /stats tells
// the requests, the most of them in any second, and the most in flight; POST /reset forgets them.
import http from "node:http";

const options = { port: 0, "latency-ms": 0 };
for (let i = 2; i < process.argv.length; i += 2) {
  options[process.argv[i].replace(/^--/, "")] = Number(process.argv[i + 1]);
}

const answers = new Map();
function answer(count) {
  let body = answers.get(count);
  if (body === undefined) {
    const one = (i) => [{ label: i % 3 ? "POSITIVE" : "NEGATIVE", score: 0.9987654328346252 - i / 1e4 }];
    body = Buffer.from(JSON.stringify(Array.from({ length: count }, (_, i) => one(i))));
    answers.set(count, body);
  }
  return body;
}

let times = [];
let items = 0;
let inFlight = 0;
let peak = 0;

function mostInOneSecond() {
  let most = 0;
  for (let first = 0, last = 0; last < times.length; last++) {
    while (times[last] - times[first] >= 1000) first++;
    most = Math.max(most, last - first + 1);
  }
  return most;
}

function reply(response, body) {
  inFlight--;
  response.writeHead(200, { "Content-Type": "application/json", "Content-Length": body.length });
  response.end(body);
}

const server = http.createServer((request, response) => {
  if (request.method === "GET") {
    const stats = { requests: times.length, items, peak, most_in_one_second: mostInOneSecond(),
                    first_at: times[0], last_at: times.at(-1) };
    inFlight++;
    reply(response, Buffer.from(JSON.stringify(stats)));
    return;
  }
  if (request.url === "/reset") {
    times = [];
    items = peak = 0;
    inFlight = 1;
    reply(response, Buffer.from("{}"));
    return;
  }
  times.push(performance.timeOrigin + performance.now());
  inFlight++;
  if (inFlight > peak) peak = inFlight;
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const { inputs } = JSON.parse(pieces.length === 1 ? pieces[0] : Buffer.concat(pieces));
    const count = Array.isArray(inputs) ? inputs.length : 1;
    items += count;
    const body = answer(count);
    if (options["latency-ms"]) setTimeout(reply, options["latency-ms"], response, body);
    else reply(response, body);
  });
});
server.keepAliveTimeout = 60_000;
server.listen(options.port, "127.0.0.1", () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` }));
});
process.stdin.on("end", () => process.exit(0)).resume();
