"""`bon rounds`: expert iteration, from a policy to better ones.

    policy 0 ──► evaluate
    policy r-1 ──► harvest ──► select, from the logs of all rounds so far ──► train ──► policy r ──► evaluate ──► stop?

run          the rounds, when they stop, and which policy is kept
steps        one step each; a step whose result is there is skipped, so the same command goes on after a crash
folder       the layout of a run; the results in it are all the state there is
evaluation   held-out figures of a round, paired with other rounds
kl           KL of a tuned policy to the first one, in a process of its own
options      what was asked; a run with other options is refused
"""
