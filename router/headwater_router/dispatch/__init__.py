"""Where a request goes, and what becomes of it: the rules, without a socket or a byte of an answer.

`Dispatcher` chooses an endpoint for a `Call`; each stay at one is a `Dispatch`, which is told what happens and ends in
exactly one `Outcome`. The gateway drives them with real connections; a simulation drives the same objects.
"""
