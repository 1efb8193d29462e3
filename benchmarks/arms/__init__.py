"""What `round_trip.py` and `kl_reward.py` share: parts that are done once, policies made in different ways, answers."""
