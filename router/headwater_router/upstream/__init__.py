"""The client for engines: a lean HTTP/1.1 client for the token path and the probes.

A general client spends most of its CPU in layers that a router has no use for. What is here is what forwarding needs:
send prepared bytes, parse the answer's head, hand its body on as it comes, hold the engine back when the client is
slow, and close at once when the client leaves. How many connections there may be is for `descriptors` to say.

    pool.py         finds or makes a connection for a request
    connection.py   one connection, and the answer that comes over it
    state.py        what it may do after what
    head.py         what an answer's head may be
    errors.py       all that can go wrong
"""
