"""What drives the rest from outside: prompts through a server, rounds of training, long tests.

server_process   a `bon serve` for the length of a `with` block; it never outlives its parent
harvest/         many prompts through a server
rounds/          harvest, select, train, evaluate, k times over
soak/            mixed traffic for hours, and whether anything was lost

All of it talks to a server through the client, `bon`, as any caller would, and imports nothing of `serving`.
"""
