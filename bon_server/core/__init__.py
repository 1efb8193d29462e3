"""The algorithm and its nouns: sample N completions, score each as it arrives, choose the best.

Nothing here knows protobuf, the log, an engine or the configuration, or imports another package of the server.

    best_of_n(request, policy, reward_model, stop) ──► Answer, which holds every candidate
        │
        Candidates ── sample ──► Policy                  as many at once as the request may take of `policy.slots`
            ├── milestone ──► Scores ──► Pruning         the prefix is scored; low ones are aborted
            ├── completion ──► Scores ──► RewardModel    equal texts share one score
            ├── reward ──► stopping                      enough, or is one more worth its price?
            └── settled, or `stop` ──► selection         argmax or soft, over the finite rewards

types                   Request, Candidate, Completion, Score and the enums: frozen; enum values are what the log holds
errors                  the tree of exceptions
protocols               Policy and RewardModel: what the algorithm needs of a model
best_of_n, candidates   one request, from its first sample to its answer
scores, pruning         scores of completions and prefixes; speculative rejection
stopping, selection     pure rules over rewards

Invariants: a reward that is missing or not finite never wins; ties go to the lowest index, whatever the order of
arrival; a failure is an error and never a random choice; a stopped or failed request still returns its candidates.
"""
