"""The HTTP/1.1 server of router and engine: asyncio protocols over uvloop and httptools, of the extras of both.

server.py lets clients in; parser.py makes requests of their bytes; connection.py has them answered one after the other;
writer.py frames the answers. None of them knows what is asked: whoever builds a `Server` gives it a handler.
"""
