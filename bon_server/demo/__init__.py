"""`bon demo`: best-of-N from end to end on one machine, with a real policy and a reward model trained here.

    policy_model, reward_model ──► server ──► problems at N = 8 ──► candidates, figures ──► log, training set

problems       arithmetic with exact answers, in splits that share no operands
policy_model   SmolLM2-135M-Instruct from an installed package
reward_model   the policy's first layers with the adapter of `trained/`
run            the demo
samples, train_reward, evaluate    made `trained/`: sampling, training, and a report on problems never seen
"""
