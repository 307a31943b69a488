"""The OpenAI API's words, shared by engine and router: requests, answers, errors.

Requests are pydantic models: unknown fields are kept, wrong ones raise an error that names them, and null means "not
given". Answers are msgspec structs, because a stream encodes one of them for every token.
"""
