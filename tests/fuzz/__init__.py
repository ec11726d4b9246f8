"""What senders get wrong, on purpose: requests, webhooks, label configs and images, mutated by a seed.

`make fuzz ARGS="--minutes 10 --seed 3"` runs it for longer; the tests run it for some seconds.
"""
