"""The pool: inputs become outcomes, through everything that an endpoint can do.

    demand      how much input is wanted, and when a batch goes out that is not full
    batching    inputs of several chunks become batches, which run on over their borders
    window      inputs that wait, sorted by length, so that those of a batch are of similar length
    pool        workers, each with one request in flight at most; `ask` and the end
    server      one address, with its own gate, limits, batch size and so on
    fleet       several servers of one model: they are greeted, left out, and looked for again
    introduction  how the first worker meets the endpoint, before the others start
    splitting   each input gets its outcome; a refused batch is halved to find the row at fault
    together    servers that go through a list one by one are told not to, if that helps
    patience    what a failure allows next, by its cause; `failures` are those of one request
    trust       is a refusal the rows' fault or the endpoint's? a text of known answer decides
    gate        closed while a model is loading or an endpoint is down: one probe goes on
    attempt     one request: a permit, a token, a time limit, and what it came to
    search      the batch size, the concurrency and the form of requests by which most is done
    sample      what the search measures: answers under one setting
    turnstile, concurrency, budget, alarm    the limits that an attempt goes through
    tally       what attempts came to, told once a tick so that observers cost nothing a request

Each calls only those below it. A batch goes from splitting to patience to an attempt, and
what comes of it returns the same way: an answer is settled, a refusal is split, and any other
failure stays in patience, which waits (alone, for everybody at the turnstile, or at the gate)
and tries again.

- **A cold start costs a handful of requests.** The gate closes at the first 503 that says loading;
  one worker probes with its own batch and `x-wait-for-model`, all others wait.
- **An outage is not multiplied by retries.** They come from a budget that successes earn. When it
  is used up, or one request has failed for good while nothing is answered, the gate closes. Then
  a text that was answered before is the probe, to tell an outage from a batch that always fails.
- **A 429 pauses everybody**, at the turnstile, as long as the endpoint says, else longer each time
  (`patience._pause_all`). After it the rate is held just below what the server let through.
- **Whose fault is it?** Statuses lie, so a text that was answered before decides; as long as none
  was, a plain one. It is asked if more was refused in a row than bad rows explain, if a refusal
  means the account, and if nothing else tells whether one batch fails (500, 424) or the endpoint
  does. Until a refusal is vouched for, by that text or by any later answer, its row is only a
  suspect, and gets no error. A batch that alone keeps failing is treated as refused.
- **Several servers** share the queue. One that is not well passes on what it holds, and takes no
  batch until it has answered a text of ours as the others did.
- Loading is bounded by `max_loading_s`, an outage by `max_outage_s`, everything else by the
  number of failures that its cause may have (`patience.MOST_FAILURES`).
"""

from pipeline.pool.batching import MAX_REQUEST_BYTES
from pipeline.pool.pool import Pool

__all__ = ["MAX_REQUEST_BYTES", "Pool"]
