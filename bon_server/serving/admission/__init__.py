"""Which requests may start, and when. What cannot be answered in time is refused at once, by a typed error.

    deadlines: can it be met? ──► quotas.reserve ──► permits ──► fair_queue ──► a permit, or a refusal

receiving    bytes of messages in memory are bounded, and so is the time that one may take to arrive
descriptors  connections are bounded by what the process may open
quotas       token buckets of candidates and sampled tokens for each key's name; unused ones come back
deadlines    what recent requests took: how long before the deadline to stop, and which deadlines are hopeless
permits      candidates in flight and waiting are bounded, in number and in waiting time
fair_queue   self-clocked fair queueing between callers, by candidates: no clock, no event loop
"""
