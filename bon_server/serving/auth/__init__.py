"""Who may call what. Closed by default: a method is open to the rights that `access` lists for it, and to nobody else.

access    the interceptor: checks the key's right before a handler is looked up or a byte of the message is read
keys      the key file: digests, rights and quotas, never a key; `bon keys` edits it whole
guards    what the listeners need at start: certificates and keys
watched   files that an operator may change while the server runs; a bad change keeps the last good content
"""
