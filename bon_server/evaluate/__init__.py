"""What a log says: reward@k, KL, headroom, comparisons. Reads logs in one or two passes, holds sums, prints tables.

    log.read ──► arrow_columns ──► reading: tables ──► curve_sums ──► curve, headroom, compare
                                                 └──► kl

table           requests and candidates as numpy columns
reading         the stream of tables; of a request in several logs the earliest answer counts
arrow_columns   numbers out of Arrow batches: reward, length, tokens, log-probability, added scores
curve_sums      sums over requests, from which every figure at k is made
curve, kl, headroom, compare    one `bon evaluate` command each
report/         `bon report`, all of it as one page

Rewards of different reward models are refused, not mixed. What is left out of a figure is counted beside it.
`estimators` turns the sums into figures, with intervals from resampling prompts. All KL is in nats.
"""
