"""The models that vLLM runs: the policy, the pooling reward model, and the processes that their engines run in.

    server process                                      engine process, one per engine
    policy ──► policy_engine ──┐                        engine_process: lives and dies with the server
    reward ──► reward_engine ──┴──► engine ── starts ──►    shared_grammars: one compiled grammar for all candidates
    grammar_gate ── starts ──► grammar_trial            stat_logger: vLLM's metrics, in the server process

policy, reward                 the two models; each candidate is a vLLM request, prompts are shared by prefix caching
policy_engine, reward_engine   the arguments of each engine
engine, ending                 starting engines one after the other, ending them quietly
grammar*                       JSON schemas and regular expressions, tried under limits before an engine sees them
successor                      a restarted engine; or one with new weights, tested beside the old one before it is used

An engine is never given other weights in place: a second one starts, has to reproduce log-probabilities that
transformers computed, and only then serves. A dead engine answers `Unavailable`; no text reaches vLLM's own log.
"""
