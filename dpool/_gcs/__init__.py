"""The global control store: what every node must be able to read, kept in Redis.

```
  node's loop ──post(op)──► GcsWriter ──► Ledger ──► Store ──► Redis (embedded, or DPOOL_REDIS_URL)
       ▲                    (own thread)  (pure)     redis_store | memory
       └────────notify(event)────┘
```

- `tables`: rows, writes and the `Store` protocol; `keys`: every Redis key, spelled once.
- `lineage`: how a batch of task records is packed; `ledger`: what must be in the store and what is not there yet;
  `operations`: what it is told.
- `memory`, `redis_store`: the two stores; `server`: the embedded server; `writer`: the thread that ties them together.

`resp` speaks to the embedded server; only `redis_link`, for a server with a URL, imports redis.
"""
